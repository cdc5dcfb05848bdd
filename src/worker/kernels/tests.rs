//! Every hand-written kernel within the bound of a product, on ragged shapes and odd blocks.

use super::{Blocked, Blocks, Library, MatmulKernel, Parallel, Reference, Shape, all};
use crate::verify::{bounds::Arithmetic, inputs::Source};

const SHAPES: [Shape; 7] = [
    Shape { m: 1, n: 1, k: 1 },
    Shape { m: 1, n: 37, k: 100 },
    Shape { m: 5, n: 1, k: 13 },
    Shape { m: 16, n: 256, k: 64 },
    Shape { m: 17, n: 257, k: 65 },
    Shape { m: 3, n: 300, k: 129 },
    Shape { m: 33, n: 31, k: 7 },
];

#[track_caller]
fn check(kernel: &dyn MatmulKernel, shape: Shape) {
    let Shape { m, n, k } = shape;
    let mut source = Source::new(5, (m * n * k) as u64);
    let mut draw = |len| -> Vec<f32> { (0..len).map(|_| source.normal()).collect() };
    let (a, b) = (draw(m * k), draw(k * n));
    let mut c = vec![f32::NAN; m * n];
    kernel.multiply(&a, &b, &mut c, shape);
    for at in 0..m * n {
        let terms = (0..k).map(|p| f64::from(a[at / n * k + p]) * f64::from(b[p * n + at % n]));
        let (exact, magnitude) = terms.fold((0.0, 0.0), |sums, it| (sums.0 + it, sums.1 + it.abs()));
        let (error, bound) = ((f64::from(c[at]) - exact).abs(), Arithmetic::cpu().product(k, magnitude, exact));
        assert!(error <= bound, "{} {shape:?}: element {at} is off by {error:e}, bound {bound:e}", kernel.name());
    }
}

#[test]
fn every_kernel_stays_within_the_bound_on_ragged_shapes() {
    for kernel in all(2) {
        SHAPES.iter().for_each(|&shape| check(kernel.as_ref(), shape));
    }
}

#[test]
fn blocks_of_any_size_give_a_right_product() {
    for (m, n, k) in [(1, 1, 1), (3, 5, 7), (1000, 1000, 1000), (4, 16, 1)] {
        let blocks = Blocks { m, n, k };
        for shape in SHAPES {
            check(&Blocked(blocks), shape);
            check(&Parallel::new(blocks, 3), shape);
        }
    }
}

#[test]
fn what_the_result_held_before_does_not_matter() {
    let shape = Shape { m: 2, n: 3, k: 4 };
    for kernel in all(1) {
        let mut c = vec![f32::INFINITY; 6];
        kernel.multiply(&[1.0; 8], &[1.0; 12], &mut c, shape);
        assert_eq!(c, [4.0; 6], "{}", kernel.name());
    }
}

#[test]
fn an_absent_library_says_which_were_looked_for() {
    match Library::find(1) {
        Ok(library) => assert!(library.name().starts_with("library ("), "{}", library.name()),
        Err(error) => assert!(error.to_string().contains("libopenblas.so.0"), "{error}"),
    }
}

#[test]
#[should_panic(expected = "do not have the shape")]
fn operands_of_another_length_are_refused() {
    Reference.multiply(&[1.0; 3], &[1.0; 4], &mut [0.0; 4], Shape { m: 2, n: 2, k: 2 });
}
