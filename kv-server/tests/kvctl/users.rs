//! Runs the commands of docs/users.md.

use crate::common::page::Page;

const PAGE: Page = Page("users.md");

#[test]
fn commands_for_users_print_what_the_page_says() {
    PAGE.run("First steps");
}

#[test]
fn every_section_with_commands_is_run() {
    assert_eq!(PAGE.titles(), ["First steps"]);
}
