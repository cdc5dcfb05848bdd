//! How many cases tests try. `script/stress` raises the number and adds up what they report.

use proptest::prelude::ProptestConfig;

/// Multiplies the cases of every property test that asks here.
const SCALE: &str = "KFORGE_TEST_SCALE";

/// The settings of a property test that tries `normal` cases in a normal run of the tests.
pub fn cases(normal: u32) -> ProptestConfig {
    let scale = std::env::var(SCALE).ok().and_then(|it| it.parse().ok()).unwrap_or(1);
    let cases = normal.saturating_mul(scale);
    tried(cases.into());
    ProptestConfig::with_cases(cases)
}

/// Tells how many cases this test tries. Counted only if the test passes, and then it has tried all of them.
pub fn tried(cases: u64) {
    println!("cases: {cases}");
}
