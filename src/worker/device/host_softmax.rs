//! The softmax of attention on the CPU, between two dispatches of a GPU: what the original tool did.

use std::thread;

/// Rows that are worth a thread.
const ROWS_PER_THREAD: usize = 256;

/// Softmax over the last dimension of `scores` [.., rows, keys], in place. `causal`: row r sees the keys 0..=r, the others get 0.
pub fn softmax(scores: &mut [f32], rows: usize, keys: usize, causal: bool) {
    if keys == 0 || rows == 0 {
        return;
    }
    let total = scores.len() / keys;
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let threads = (total / ROWS_PER_THREAD).clamp(1, cores);
    let share = total.div_ceil(threads);
    thread::scope(|scope| {
        for (part, scores) in scores.chunks_mut(share * keys).enumerate() {
            scope.spawn(move || {
                for (index, row) in scores.chunks_mut(keys).enumerate() {
                    let at = (part * share + index) % rows;
                    let (seen, hidden) = row.split_at_mut(if causal { (at + 1).min(keys) } else { keys });
                    one(seen);
                    hidden.fill(0.0);
                }
            });
        }
    });
}

fn one(row: &mut [f32]) {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, |a, b| if a > b || a.is_nan() { a } else { b });
    row.iter_mut().for_each(|it| *it = (*it - most).exp());
    let sum: f32 = row.iter().sum();
    row.iter_mut().for_each(|it| *it /= sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_add_up_to_one_and_hidden_keys_have_none() {
        let (rows, keys) = (5, 5);
        let mut scores: Vec<f32> = (0..2 * rows * keys).map(|it| (it * 7 % 11) as f32).collect();
        softmax(&mut scores, rows, keys, true);
        for (index, row) in scores.chunks(keys).enumerate() {
            let seen = index % rows + 1;
            assert!((row[..seen].iter().sum::<f32>() - 1.0).abs() < 1e-6, "{row:?}");
            assert!(row[seen..].iter().all(|it| *it == 0.0), "{row:?}");
        }
    }

    #[test]
    fn large_scores_do_not_overflow_and_nan_stays() {
        let mut scores = vec![1e30, 1e30, f32::NAN, 0.0];
        softmax(&mut scores, 2, 2, false);
        assert_eq!(&scores[..2], [0.5, 0.5]);
        assert!(scores[2].is_nan() && scores[3].is_nan());
    }
}
