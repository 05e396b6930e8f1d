//! Runs the commands of docs/operations.md: one test for each section, in a directory and on ports of its own.

use crate::common::page::Page;

const PAGE: Page = Page("operations.md");

fn run(title: &str) {
    PAGE.run(title);
}

#[test]
fn from_one_node_to_three_keeps_the_data() {
    run("From one node to three");
}

#[test]
fn node_that_lost_its_disk_is_replaced() {
    run("Replacing a node");
}

#[test]
fn copy_of_a_data_directory_becomes_a_cluster() {
    run("Restoring from a copy");
}

#[test]
fn survivor_of_a_majority_becomes_a_cluster() {
    run("Loss of a majority");
}

#[test]
fn node_without_room_serves_reads() {
    run("Full and stalled disks");
}

#[test]
fn moved_node_is_found() {
    run("Moving addresses");
}

#[test]
fn nodes_that_all_moved_go_by_the_new_file() {
    run("Moving all addresses at once");
}

#[test]
fn every_section_with_commands_is_run() {
    let titles = PAGE.titles();
    let run = [
        "From one node to three",
        "Full and stalled disks",
        "Loss of a majority",
        "Moving addresses",
        "Moving all addresses at once",
        "Replacing a node",
        "Restoring from a copy",
    ];
    assert_eq!(titles, run);
}
