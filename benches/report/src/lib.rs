//! Tables and plots of measurements, for the terminal and for docs/performance.md.

pub mod page;
mod readme;
pub mod table;
