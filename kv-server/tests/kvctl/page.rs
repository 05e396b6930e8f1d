//! Runs the commands of docs/kvctl.md: one test for each section.

use crate::common::page::Page;

const PAGE: Page = Page("kvctl.md");

#[test]
fn commands_for_keys_print_what_the_page_says() {
    PAGE.run("Keys");
}

#[test]
fn commands_for_watches_print_what_the_page_says() {
    PAGE.run("Watches");
}

#[test]
fn commands_for_leases_print_what_the_page_says() {
    PAGE.run("Leases");
}

#[test]
fn commands_for_locks_print_what_the_page_says() {
    PAGE.run("Locks");
}

#[test]
fn commands_for_elections_print_what_the_page_says() {
    PAGE.run("Elections");
}

#[test]
fn commands_of_operators_print_what_the_page_says() {
    PAGE.run("Operators");
}

#[test]
fn every_section_with_commands_is_run() {
    assert_eq!(PAGE.titles(), ["Elections", "Keys", "Leases", "Locks", "Operators", "Watches"]);
}
