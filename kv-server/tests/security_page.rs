//! The commands of docs/security.md, run as they are written.

use crate::common::page::Page;

const PAGE: Page = Page("security.md");

#[test]
fn commands_for_certificates_of_three_nodes_do_what_the_page_says() {
    PAGE.run("Certificates for three nodes in three kinds of commands");
}

#[test]
fn commands_for_trying_out_do_what_the_page_says() {
    PAGE.run("Trying out");
}

#[test]
fn all_sections_with_commands_are_run() {
    assert_eq!(PAGE.titles(), ["Certificates for three nodes in three kinds of commands", "Trying out"]);
}
