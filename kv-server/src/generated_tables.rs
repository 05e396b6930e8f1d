//! Tables of the documentation that are rendered from the code.

/// Checks that `docs/PAGE` has `tables` between its marks for `topic`. With the environment variable `update` it writes them there.
///
/// # Panics
/// The tables differ. The message says how to renew them: by the test `test`.
pub(crate) fn check(page: &str, topic: &str, tables: &str, update: &str, test: &str) {
    let path = format!("{}/../docs/{page}", env!("CARGO_MANIFEST_DIR"));
    let (begin, end) = (format!("<!-- {topic}: begin -->\n"), format!("<!-- {topic}: end -->\n"));
    let content = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = content.split_once(&begin).expect("the mark where the tables begin");
    let (found, after) = rest.split_once(&end).expect("the mark where the tables end");
    if std::env::var_os(update).is_some() {
        std::fs::write(path, format!("{before}{begin}{tables}{end}{after}")).unwrap();
        return;
    }
    assert!(
        found == tables,
        "the tables of docs/{page} are not those of the code; renew them with\n\
         {update}=1 cargo test -p kv-server --lib {test}\n\n{tables}"
    );
}
