//! Runs suites on implementations that are broken on purpose.

use std::{
    collections::BTreeSet,
    fmt::Debug,
    panic::{AssertUnwindSafe, catch_unwind},
};

/// Checks that each defect breaks the rule in its row of the table and no earlier one, and that each rule has a defect.
pub(crate) fn assert_rejected<D: Copy + Debug>(rules: &[&str], table: &[(D, &'static str)], run: impl Fn(D)) {
    for (defect, rule) in table {
        assert_eq!(broken_rule(|| run(*defect)).as_deref(), Some(*rule), "the rule that {defect:?} breaks");
    }
    let covered: BTreeSet<_> = table.iter().map(|(_, rule)| *rule).collect();
    let untested: Vec<_> = rules.iter().filter(|rule| !covered.contains(*rule)).collect();
    assert!(untested.is_empty(), "rules that no defect breaks: {untested:#?}");
}

/// Returns the rule that the suite's panic names; `None` if the suite passes.
fn broken_rule(run: impl FnOnce()) -> Option<String> {
    let panic = catch_unwind(AssertUnwindSafe(run)).err()?;
    let message = panic.downcast_ref::<String>().expect("a suite panics with a text");
    let (_, rest) = message.split_once("breaks the rule \"").unwrap_or_else(|| panic!("{message}"));
    Some(rest.split_once("\": ").unwrap_or_else(|| panic!("{message}")).0.to_owned())
}
