//! Runs the commands of docs/install.md.

use crate::common::page::Page;

const PAGE: Page = Page("install.md");

#[test]
fn commands_that_check_settings_print_what_the_page_says() {
    PAGE.run("Checking settings");
}

#[test]
fn commands_for_shells_print_what_the_page_says() {
    PAGE.run("Shells and manual pages");
}

#[test]
fn commands_for_the_bundle_print_what_the_page_says() {
    PAGE.run("When something is wrong");
}

#[test]
fn every_section_with_commands_is_run() {
    assert_eq!(PAGE.titles(), ["Checking settings", "Shells and manual pages", "When something is wrong"]);
}
