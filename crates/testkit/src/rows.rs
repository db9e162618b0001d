//! No kernel is skipped in silence.

use std::io::Write;
use std::str::FromStr;

use sparamx_cpu::Isa;

/// Collects which rows ran and which could not, and says so at the end.
///
/// `REQUIRE_ISA=amx` (or another level) turns a skip of a row of that level or below into a failure.
#[derive(Default)]
pub struct RowReport {
    lines: Vec<String>,
    missing: Vec<String>,
}

impl RowReport {
    /// Row `name` ran.
    pub fn run(&mut self, name: &str) {
        self.lines.push(format!("row {name} run"));
    }

    /// Row `name` of level `isa` could not run here.
    pub fn skip(&mut self, name: &str, isa: Isa, reason: &str) {
        self.lines.push(format!("row {name} skipped: {reason}"));
        if required().is_some_and(|level| isa <= level) {
            self.missing.push(name.to_owned());
        }
    }

    /// Prints the list, past the capture of the test harness.
    ///
    /// # Panics
    /// If a required row was skipped.
    pub fn finish(self) {
        let mut out = std::io::stdout().lock();
        // The harness has begun a line that it will end with the result.
        let _ = writeln!(out);
        for line in &self.lines {
            // A closed pipe is no reason to fail a test.
            let _ = writeln!(out, "{line}");
        }
        let _ = out.flush();
        drop(out);
        assert!(
            self.missing.is_empty(),
            "REQUIRE_ISA is set and these rows did not run: {}",
            self.missing.join(", ")
        );
    }
}

fn required() -> Option<Isa> {
    let level = std::env::var("REQUIRE_ISA")
        .ok()
        .filter(|level| !level.is_empty())?;
    Some(Isa::from_str(&level).unwrap_or_else(|e| panic!("REQUIRE_ISA: {e}")))
}
