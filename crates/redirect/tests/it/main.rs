//! Plans against goldens, and rules against a real kernel in namespaces of the test's own.

mod golden;
mod kernel;

use meltemi_testkit::skip;
