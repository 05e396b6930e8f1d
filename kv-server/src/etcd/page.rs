//! Checks that the page on the API's fields is complete.

use super::serve::descriptors;

/// Messages of a package, with their fields as the page lists them: `| name | a, b |`.
fn rows(package: &str) -> Vec<String> {
    let messages = descriptors().all_messages().filter(|message| message.package_name() == package);
    let row = |message: prost_reflect::MessageDescriptor| {
        let fields: Vec<String> = message.fields().map(|field| field.name().to_owned()).collect();
        (!fields.is_empty()).then(|| format!("| {} | {} |", message.name(), fields.join(", ")))
    };
    messages.filter_map(row).collect()
}

#[test]
fn page_lists_every_field_of_the_api() {
    let page = include_str!("../../../docs/etcd-fields.md");
    for package in ["authpb", "etcdserverpb", "mvccpb", "v3electionpb", "v3lockpb"] {
        let expected = rows(package);
        assert!(!expected.is_empty(), "{package} has no messages");
        let section = page.split("\n## ").find(|section| section.starts_with(package)).unwrap_or_default();
        let missing: Vec<&String> = expected.iter().filter(|row| !section.contains(*row)).collect();
        assert!(missing.is_empty(), "docs/etcd-fields.md, section {package}, lacks {missing:#?}");
    }
}
