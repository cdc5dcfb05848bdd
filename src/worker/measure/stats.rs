//! Order statistics. Times have long tails upward and a hard floor, so medians and quartiles describe them and means do not.

use kernelforge::protocol::Timing;

/// The statistics of `samples`, in nanoseconds; the order does not matter. `None` without a sample.
pub fn timing(mut samples: Vec<f64>) -> Option<Timing> {
    samples.sort_by(f64::total_cmp);
    Some(Timing {
        samples: samples.len(),
        median_ns: quantile(&samples, 0.5)?,
        min_ns: *samples.first()?,
        q1_ns: quantile(&samples, 0.25)?,
        q3_ns: quantile(&samples, 0.75)?,
    })
}

/// The `q`-quantile of sorted samples, interpolated linearly between neighbours (type 7 of Hyndman and Fan, 1996).
fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let at = q * (sorted.len().checked_sub(1)? as f64);
    let (low, high) = (sorted.get(at.floor() as usize)?, sorted.get(at.ceil() as usize)?);
    Some(low + (high - low) * at.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statistics_of_known_samples() {
        let it = timing(vec![5.0, 1.0, 4.0, 2.0, 3.0]).unwrap();
        assert_eq!((it.samples, it.min_ns, it.q1_ns, it.median_ns, it.q3_ns), (5, 1.0, 2.0, 3.0, 4.0));
        let it = timing(vec![4.0, 1.0]).unwrap();
        assert_eq!((it.min_ns, it.q1_ns, it.median_ns, it.q3_ns), (1.0, 1.75, 2.5, 3.25));
    }

    #[test]
    fn one_outlier_moves_neither_median_nor_quartiles() {
        let calm = timing(vec![1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        let hit = timing(vec![1.0, 2.0, 3.0, 4.0, 5e9]).unwrap();
        assert_eq!((calm.median_ns, calm.q1_ns, calm.q3_ns), (hit.median_ns, hit.q1_ns, hit.q3_ns));
    }

    #[test]
    fn no_samples_have_no_statistics() {
        assert_eq!(timing(Vec::new()), None);
    }
}
