//! V7: no gaming. What is measured is what was verified: the timed runs' own results are compared, on inputs that change from
//! round to round in buffers that the verifier never used; and no time is below what the device could do at best. The other
//! half of the gate holds by construction: a proposer hands over data that is checked against a schema, never code, and
//! seeds follow from the compiled object, which no plan can know.

use crate::{device::stored, verify::tally::Tally};
use kernelforge::{
    manifest::spec::Dtype,
    protocol::{Gate, GateResult, StageBenchmark},
};

/// A kernel may seem this much faster than the fastest sample of the machine's peak: samples last microseconds, and the clock
/// changes between two of them.
const MARGIN: f64 = 1.25;

/// Bytes that the ports of a CPU's core move for each operation of its peak: two vector loads and one store in the cycle of two
/// fused multiply-adds, which are four operations for each lane of 4 bytes.
pub const BYTES_PER_OPERATION: f64 = 3.0;

/// The results of timed runs, compared with those of untimed ones on the same inputs.
#[derive(Debug, Default)]
pub struct Timed {
    tally: Tally,
}

impl Timed {
    pub fn compare(&mut self, width: usize, value: &[f32], expected: &[f32]) {
        self.tally.compare_bits(width, value, expected);
    }

    /// The same of tensors as they are stored: equal bytes are the rule, and take a hundredth of the time.
    pub fn compare_stored(&mut self, width: usize, dtype: Dtype, value: &[u8], expected: &[u8]) {
        if value == expected {
            self.tally.agree(expected.len() / dtype.bytes());
        } else {
            self.compare(width, &stored::values(dtype, value), &stored::values(dtype, expected));
        }
    }

    /// `stage` is none for the block.
    pub fn result(self, stage: Option<&str>) -> GateResult {
        self.tally.result(Gate::V7NoGaming, stage, "results of the timed runs")
    }
}

/// Whether the median time of a stage (or, without one, of the block) is possible. `peak`: the most operations in a nanosecond
/// that any sample of the machine's peak showed, on the same threads and in the same rounds.
///
/// `bytes_peak`: the most bytes in a nanosecond that the nearest memory delivers.
pub fn plausible(benchmark: &StageBenchmark, stage: Option<&str>, peak: f64, bytes_peak: f64) -> GateResult {
    let floor = (benchmark.flops as f64 / peak).max(benchmark.bytes as f64 / bytes_peak) / MARGIN;
    let measured = benchmark.timing.median_ns;
    let mut tally = Tally::default();
    tally.expect(measured >= floor, || {
        format!(
            "a time of {measured:.0} ns is not plausible: at {peak:.1} operations a nanosecond, the fastest sample of the machine's \
             peak, {} operations and {} bytes take {floor:.0} ns at least",
            benchmark.flops, benchmark.bytes
        )
    });
    tally.result(Gate::V7NoGaming, stage, "plausible time")
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernelforge::protocol::{GateStatus, Timing};

    fn status(median_ns: f64, flops: u64, bytes: u64) -> GateStatus {
        let timing = Timing { samples: 9, median_ns, min_ns: median_ns, q1_ns: median_ns, q3_ns: median_ns };
        let benchmark = StageBenchmark { name: "mlp".to_owned(), op: "mlp".to_owned(), timing, flops, bytes };
        plausible(&benchmark, Some("mlp"), 100.0, 100.0 * BYTES_PER_OPERATION).status
    }

    #[test]
    fn a_time_below_that_of_the_peak_is_refused() {
        assert_eq!(status(1000.0, 100_000, 0), GateStatus::Passed);
        assert_eq!(status(801.0, 100_000, 0), GateStatus::Passed);
        assert_eq!(status(799.0, 100_000, 0), GateStatus::Failed);
    }

    #[test]
    fn what_multiplies_nothing_must_move_its_bytes() {
        assert_eq!(status(1000.0, 0, 300_000), GateStatus::Passed);
        assert_eq!(status(700.0, 0, 300_000), GateStatus::Failed);
        assert_eq!(status(f64::NAN, 0, 1), GateStatus::Failed);
    }
}
