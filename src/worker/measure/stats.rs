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

/// The median of `values`; `None` of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    quantile(&sorted, 0.5)
}

/// The standard error of the median of `values`: 1.253 sigma / sqrt(n), as of normal noise (sqrt(pi / 2), Kenney and Keeping, Mathematics
/// of Statistics, 1962), with sigma = 1.4826 times the median absolute deviation, which the long tail upward does not move (Rousseeuw
/// and Croux, Alternatives to the median absolute deviation, 1993). Not finite of fewer than two.
pub fn median_error(values: &[f64]) -> f64 {
    let Some(centre) = median(values).filter(|_| values.len() > 1) else { return f64::INFINITY };
    let deviations: Vec<f64> = values.iter().map(|it| (it - centre).abs()).collect();
    let sigma = 1.4826 * median(&deviations).unwrap_or(f64::INFINITY);
    1.253 * sigma / (values.len() as f64).sqrt()
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
    fn the_error_of_a_median_is_that_of_its_calm_samples() {
        // Deviations 0, 1, 1, 2, 98: the median of them is 1.
        let error = median_error(&[10.0, 9.0, 11.0, 12.0, 108.0]);
        assert!((error - 1.253 * 1.4826 / 5f64.sqrt()).abs() < 1e-12, "{error}");
        assert_eq!(median_error(&[1.0; 9]), 0.0);
        assert_eq!(median_error(&[1.0]), f64::INFINITY);
    }

    #[test]
    fn no_samples_have_no_statistics() {
        assert_eq!(timing(Vec::new()), None);
    }
}
