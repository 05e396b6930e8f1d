//! Tests of the store in one program, which links in a small part of the time that one program for each file would take. Those that
//! change limits of their process, or run for long, are programs of their own.

mod common;

mod alarms;
mod auth;
mod bounds;
mod copies;
mod leases;
mod member_ids;
mod model;
mod range_deletions;
mod segments;
mod suite;
mod watch;
