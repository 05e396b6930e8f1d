//! The figures of README.md, taken from docs/performance.md.

use std::{fs, path::Path};

/// Puts the figures of docs/performance.md in the place of what stands between the marks of README.md, which is above
/// `docs`.
///
/// # Errors
/// A file cannot be read or written, README.md lacks the marks, or the page lacks a figure.
pub(crate) fn renew(docs: &Path) -> Result<(), String> {
    let (path, text) = readme(docs)?;
    let (before, _, after) = split(&text)?;
    let figures = figures(&page(docs)?)?;
    fs::write(&path, format!("{before}{figures}{after}"))
        .map_err(|error| format!("{}: {error}", path.display()))
}

fn readme(docs: &Path) -> Result<(std::path::PathBuf, String), String> {
    let path = docs.join("../README.md");
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok((path, text))
}

fn page(docs: &Path) -> Result<String, String> {
    let path = docs.join("performance.md");
    fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
}

/// What stands before, between and after the marks.
fn split(readme: &str) -> Result<(&str, &str, &str), String> {
    let found = readme.find(BEGIN).zip(readme.find(END));
    let (begin, end) = found.ok_or_else(|| format!("README.md: there are no lines {BEGIN} and {END}"))?;
    let begin = begin + BEGIN.len();
    Ok((&readme[..begin], &readme[begin..end], &readme[end..]))
}

/// The table of README.md, from the text of docs/performance.md.
fn figures(page: &str) -> Result<String, String> {
    let figure = |table: &str, cells: &[&str], column: usize| {
        let row = row(page, table, cells)?;
        let cell =
            row.get(column).ok_or_else(|| format!("{table}: the row {} is too short", cells.join(", ")))?;
        Ok::<_, String>(cell.replace(' ', ","))
    };
    let failover = |system: &str| {
        let row = row(page, "Failover beside etcd", &[system])?;
        let ms: f64 =
            row.get(2).and_then(|ms| ms.parse().ok()).ok_or(format!("{system}: no milliseconds"))?;
        Ok::<_, String>(format!("{:.2} s", ms / 1000.0))
    };
    let mut table = String::from("\n| | clients | here | etcd |\n|---|---:|---:|---:|\n");
    let (grpc, thrift) = (("Server beside etcd, both over gRPC", 5), ("Server beside etcd", 6));
    for (text, (name, of_etcd), load, clients) in [
        ("puts a second, both over gRPC", grpc, "put", "1"),
        ("", grpc, "put", "64"),
        ("linearizable gets a second, both over gRPC", grpc, "get", "64"),
        ("puts a second, here over Thrift", thrift, "put", "64"),
        ("linearizable gets a second, here over Thrift", thrift, "get", "64"),
    ] {
        let (ours, etcd) = (figure(name, &[load, clients], 2)?, figure(name, &[load, clients], of_etcd)?);
        table.push_str(&format!("| {text} | {clients} | {ours} | {etcd} |\n"));
    }
    let count = ["number of keys", "300000"];
    let (ours, etcd) = (figure("Lists", &count, 2)?, figure("Lists", &count, 3)?);
    table.push_str(&format!("| the exact number of 300,000 keys | 1 | {ours} ms | {etcd} ms |\n"));
    let (ours, etcd) = (failover("ours, default")?, failover("etcd, default")?);
    let text = "without acknowledged writes after `kill -9` of the leader, median";
    table.push_str(&format!("| {text} | | {ours} | {etcd} |\n"));
    Ok(table)
}

/// The cells of the row that begins with `cells`, in the table with this name.
fn row<'a>(page: &'a str, name: &str, cells: &[&str]) -> Result<Vec<&'a str>, String> {
    let (_, table) = page.split_once(&format!("<!-- begin: {name} -->")).ok_or(format!("no table {name}"))?;
    let table = table.split("<!-- end").next().unwrap_or_default();
    let mut rows =
        table.lines().map(|line| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>());
    rows.find(|row| row.starts_with(cells)).ok_or(format!("{name}: no row {}", cells.join(", ")))
}

const BEGIN: &str = "<!-- begin: figures of docs/performance.md -->";
const END: &str = "<!-- end: figures of docs/performance.md -->";

#[cfg(test)]
mod tests {
    use super::*;

    /// Renews the figures instead of comparing them.
    const UPDATE: &str = "UPDATE_README_FIGURES";

    #[test]
    fn readme_has_the_figures_of_the_page() {
        let docs = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs"));
        if std::env::var_os(UPDATE).is_some() {
            renew(docs).unwrap();
        }
        let (_, text) = readme(docs).unwrap();
        let (_, found, _) = split(&text).unwrap();
        let expected = figures(&page(docs).unwrap()).unwrap();
        assert_eq!(
            found, expected,
            "renew README.md with {UPDATE}=1 cargo test -p consensus-bench-report --lib readme"
        );
    }

    #[test]
    fn page_without_a_row_is_refused_with_its_name() {
        let name = "Server beside etcd, both over gRPC";
        let page = format!("<!-- begin: {name} -->\n| get | 1 | 2 |\n<!-- end: {name} -->");
        assert_eq!(figures(&page).unwrap_err(), format!("{name}: no row put, 1"));
    }
}
