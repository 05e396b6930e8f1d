//! What the documents name exists: files, links, types, functions, settings.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn files(dir: &Path, ending: &[&str], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with('.') || ["target", "data"].contains(&name.as_str()) {
            continue;
        }
        if path.is_dir() {
            files(&path, ending, found);
        } else if ending.iter().any(|ending| name.ends_with(ending)) {
            found.push(path);
        }
    }
}

/// What stands between `open` and `close`, outside of fenced blocks.
fn between(text: &str, open: &str, close: &str) -> Vec<String> {
    let outside: String = text.split("```").step_by(2).collect();
    let after = outside.split(open).skip(1);
    if open == close {
        return after.step_by(2).map(str::to_owned).collect();
    }
    after.filter_map(|rest| rest.split(close).next()).map(str::to_owned).collect()
}

fn is_name(word: &str) -> bool {
    word.contains(['_', ':'])
        || word.chars().skip(1).any(char::is_uppercase) && word.chars().any(char::is_lowercase)
}

fn problems(document: &str, text: &str, sources: &str, dir: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    for link in between(text, "](", ")") {
        let path = link.split('#').next().unwrap();
        if !path.starts_with("http") && !dir.join(path).exists() {
            problems.push(format!("{document}: the link {link} leads nowhere"));
        }
    }
    let identifier = |c: char| c.is_alphanumeric() || "_:".contains(c);
    for code in between(text, "`", "`") {
        let code = code.split(['(', ' ']).next().unwrap();
        let first = code.split('/').next().unwrap();
        if code.contains('/') && first != "." && root().join(first).is_dir() && !root().join(code).exists() {
            problems.push(format!("{document}: there is no {code}"));
        } else if !code.is_empty() && code.chars().all(identifier) && is_name(code) {
            let last = code.rsplit("::").next().unwrap();
            if !sources.split(|c: char| !identifier(c)).any(|word| word.rsplit("::").next() == Some(last)) {
                problems.push(format!("{document}: nothing is named {code}"));
            }
        }
    }
    problems
}

#[test]
fn what_the_documents_name_exists() {
    let mut sources = Vec::new();
    files(root(), &[".rs", ".thrift", "Cargo.toml"], &mut sources);
    sources.retain(|path| path != &root().join("examples/tests/documents.rs"));
    let sources: String = sources.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let mut documents = Vec::new();
    files(root(), &[".md"], &mut documents);
    assert!(documents.len() >= 5, "{documents:?}");
    let check = |path: &PathBuf| {
        problems(
            &path.display().to_string(),
            &fs::read_to_string(path).unwrap(),
            &sources,
            path.parent().unwrap(),
        )
    };
    let problems: Vec<String> = documents.iter().flat_map(check).collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// What a manifest and its folder lack to be published on purpose, or kept back on purpose.
fn missing_for_publishing(manifest: &str, folder: &Path) -> Vec<String> {
    let has = |line: &str| manifest.lines().any(|found| found.starts_with(line));
    if has("publish = false") {
        return Vec::new();
    }
    let lines = ["publish = true", "description", "license", "rust-version", "keywords", "categories"];
    let lines = lines.into_iter().filter(|line| !has(line)).map(|line| format!("`{line}` in Cargo.toml"));
    let files = ["README.md", "LICENSE-APACHE", "LICENSE-MIT"];
    let files = files.into_iter().filter(|file| !folder.join(file).exists()).map(str::to_owned);
    lines.chain(files).collect()
}

#[test]
fn every_package_is_complete_for_publishing_or_not_published() {
    let mut manifests = Vec::new();
    files(root(), &["Cargo.toml"], &mut manifests);
    manifests.retain(|path| path != &root().join("Cargo.toml"));
    assert!(manifests.len() > 15, "{manifests:?}");
    let mut problems = Vec::new();
    for path in manifests {
        let missing = missing_for_publishing(&fs::read_to_string(&path).unwrap(), path.parent().unwrap());
        if !missing.is_empty() {
            problems.push(format!("{}: {} missing", path.display(), missing.join(", ")));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn package_without_keywords_or_readme_is_found() {
    let manifest =
        "publish = true\ndescription = \"\"\nlicense = \"MIT\"\nrust-version = \"1\"\ncategories = []";
    let found = missing_for_publishing(manifest, &root().join("docs"));
    assert_eq!(found, ["`keywords` in Cargo.toml", "README.md", "LICENSE-APACHE", "LICENSE-MIT"]);
    assert!(missing_for_publishing("publish = false", root()).is_empty());
}

#[test]
fn what_does_not_exist_is_found() {
    let text =
        "See [this](no/such.md), `examples/no_such.rs`, `NoSuchType` and `RealType::no_such`; not `sync`.";
    let found = problems("d", text, "struct RealType;", root());
    assert_eq!(found.len(), 4, "{found:?}");
}

/// The other programs of the guide use it from the library.
#[test]
fn guide_shows_its_application_as_it_is() {
    let read = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    let (guide, source) = (read("docs/guide.md"), read("examples/src/guide.rs"));
    let (_, code) = source.split_once("\n\n").unwrap();
    assert!(guide.contains(code.trim_end()), "docs/guide.md differs from examples/src/guide.rs");
}
