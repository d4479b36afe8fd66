//! Every unit against the definition, on every kind of edge.

use super::*;
use crate::kernels::{Kernels, Precision, View, gradient};
use crate::ops::finite_differences::random;
use crate::{FrozenWeight, Matrix, Workspace};

/// The kernels of every unit that this processor has.
fn units() -> Vec<Kernels> {
    let named = [("AMX", Kernels::amx()), ("AVX-512-BF16", Kernels::avx512_bf16())];
    let mut units = vec![Kernels::bf16_in_float32()];
    for (name, kernels) in named {
        match kernels {
            Some(kernels) => units.push(kernels),
            None => eprintln!("skipped: this processor has no {name}"),
        }
    }
    units
}

fn rounded(matrix: &Matrix, scale: f32) -> Matrix {
    let values = matrix.data().iter().map(|value| from_bf16(tile::to_bf16(value * scale))).collect();
    Matrix::from_vec(matrix.rows(), matrix.cols(), values)
}

fn scaled(matrix: &Matrix, scale: f32) -> Matrix {
    Matrix::from_vec(matrix.rows(), matrix.cols(), matrix.data().iter().map(|value| value * scale).collect())
}

/// Checks `c = kept + a·bᵀ` for bf16 values `a` `[m, k]` and `b` `[n, k]`.
///
/// Products of bf16 values are exact, so only the `k` additions (and one of `kept`) round, each by at most 2⁻²⁴ of a
/// partial sum, and no partial sum is larger than `S = |kept| + Σ|a·b|`: the error is at most `(k + 1)·2⁻²⁴·S`. Vector
/// units may flush products and sums below 2⁻¹²⁶ to zero.
#[track_caller]
fn check(c: &Matrix, kept: Option<&Matrix>, a: &Matrix, b: &Matrix, what: &str) {
    assert_eq!(c.shape(), (a.rows(), b.rows()), "{what}");
    for row in 0..c.rows() {
        for col in 0..c.cols() {
            let kept = kept.map_or(0.0, |kept| f64::from(kept.row(row)[col]));
            let products = a.row(row).iter().zip(b.row(col)).map(|(a, b)| f64::from(*a) * f64::from(*b));
            let (mut sum, mut size) = (kept, kept.abs());
            for product in products {
                sum += product;
                size += product.abs();
            }
            let bound = (a.cols() + 1) as f64 * f64::from(f32::EPSILON) / 2.0 * size + 1e-30;
            let found = f64::from(c.row(row)[col]);
            assert!((found - sum).abs() <= bound, "{what}, [{row}, {col}]: {found}, expected {sum} ± {bound}");
        }
    }
}

const SIZES: [(usize, usize, usize); 16] = [
    (1, 1, 1),
    (1, 16, 32),
    (1, 100, 576),
    (2, 33, 31),
    (15, 17, 33),
    (16, 16, 64),
    (17, 15, 1),
    (31, 63, 65),
    (33, 31, 7),
    (63, 48, 640),
    (64, 8, 641),
    (5, 300, 1100),
    (130, 8, 96),
    (8, 129, 1024),
    (48, 520, 40),
    (1030, 33, 50),
];

#[test]
fn products_of_values_equal_their_definition() {
    for kernels in units() {
        let workspace = Workspace::with_kernels(kernels);
        for (m, n, k) in SIZES {
            let (a, b, start) = (random(m, k, 0), random(n, k, 1), random(m, n, 2));
            let what = format!("{m} × {n} × {k}, {kernels:?}");
            let (left, right) = (rounded(&a, 0.5), rounded(&b, 1.0));
            let (at, bt) = (a.transposed(), b.transposed());
            let lefts = [View::of(&a), View::of(&at).transposed()];
            let rights = [View::of(&b).transposed(), View::of(&bt)];
            let mut results: Vec<Matrix> = Vec::new();
            for left in lefts {
                for right in rights {
                    let mut c = start.clone();
                    kernels.product(&workspace, ViewMut::of(&mut c), 1.0, 0.5, left, right);
                    results.push(c);
                }
            }
            // Thin sums over rows as they lie are not rounded to bf16.
            let (left_exact, right_exact) = (scaled(&a, 0.5), &b);
            let turned = lefts[1].col_stride > 1;
            let direct = |place: usize| place >= 2 && turned && gradient::is_direct(m > n, lefts[1], rights[place % 2]);
            for (place, result) in results.iter().enumerate() {
                let (left, right) = if direct(place) { (&left_exact, right_exact) } else { (&left, &right) };
                check(result, Some(&start), left, right, &what);
            }
            assert_eq!(results[0], results[1], "{what}: layouts of the right factor agree to the bit");
            if direct(2) == direct(3) {
                assert_eq!(results[2], results[3], "{what}: layouts of the right factor agree to the bit");
            }
            let mut c = start.clone();
            kernels.product(&workspace, ViewMut::of(&mut c), 0.0, 0.5, lefts[0], rights[0]);
            check(&c, None, &left, &right, &what);
        }
    }
}

#[test]
fn products_with_frozen_weights_equal_their_definition() {
    for kernels in units() {
        let workspace = Workspace::with_kernels(kernels);
        for (m, n, k) in SIZES {
            let (x, w) = (random(m, k, 0), random(n, k, 1));
            let weight = FrozenWeight::bf16(&w);
            let w = rounded(&w, 1.0);
            assert_eq!(weight.to_matrix(), w);
            let what = format!("{m} × {n} × {k}, {kernels:?}");
            let mut y = Matrix::zeros(m, n);
            weight.forward(&workspace, ViewMut::of(&mut y), 0.0, 1.0, View::of(&x));
            check(&y, None, &rounded(&x, 1.0), &w, &what);
            let dy = random(m, n, 3);
            let mut dx = Matrix::zeros(m, k);
            weight.input_gradient(&workspace, ViewMut::of(&mut dx), 0.0, 2.0, View::of(&dy));
            check(&dx, None, &rounded(&dy, 2.0), &w.transposed(), &what);
        }
    }
}

#[test]
fn a_row_alone_gives_the_bits_that_it_gives_among_others() {
    for kernels in units() {
        let workspace = Workspace::with_kernels(kernels);
        let weight = FrozenWeight::bf16(&random(200, 700, 0));
        let x = random(77, 700, 1);
        let product = |rows: std::ops::Range<usize>| {
            let x = Matrix::from_vec(rows.len(), 700, x.data()[rows.start * 700..rows.end * 700].to_vec());
            let mut y = Matrix::zeros(rows.len(), 200);
            weight.forward(&workspace, ViewMut::of(&mut y), 0.0, 1.0, View::of(&x));
            y
        };
        let all = product(0..77);
        for rows in [0..1, 5..6, 76..77, 3..19, 10..60] {
            let part = product(rows.clone());
            assert_eq!(part.data(), &all.data()[rows.start * 200..rows.end * 200], "{rows:?}, {kernels:?}");
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for kernels in units() {
        let pass = || {
            let workspace = Workspace::with_kernels(kernels);
            let weight = FrozenWeight::bf16(&random(1100, 650, 0));
            let mut y = Matrix::zeros(150, 1100);
            weight.forward(&workspace, ViewMut::of(&mut y), 0.0, 1.0, View::of(&random(150, 650, 1)));
            let mut dx = Matrix::zeros(150, 650);
            weight.input_gradient(&workspace, ViewMut::of(&mut dx), 0.0, 1.0, View::of(&y));
            let mut dw = Matrix::zeros(1100, 8);
            let t = random(150, 8, 2);
            kernels.product(&workspace, ViewMut::of(&mut dw), 0.0, 1.0, View::of(&y).transposed(), View::of(&t));
            [y.to_vec(), dx.to_vec(), dw.to_vec()].concat()
        };
        let with = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(pass);
        let one = with(1);
        for threads in [2, 3, 5] {
            assert_eq!(with(threads), one, "{threads} threads, {kernels:?}");
        }
    }
}

#[test]
fn infinities_and_nan_show() {
    for kernels in units() {
        let workspace = Workspace::with_kernels(kernels);
        let mut x = Matrix::zeros(3, 40);
        x.row_mut(0)[39] = f32::NAN;
        x.row_mut(1)[0] = f32::INFINITY;
        let w = Matrix::from_vec(2, 40, vec![1.0; 80]);
        let mut y = Matrix::zeros(3, 2);
        kernels.product(&workspace, ViewMut::of(&mut y), 0.0, 1.0, View::of(&x), View::of(&w).transposed());
        assert!(y.row(0).iter().all(|value| value.is_nan()), "{kernels:?}");
        assert_eq!(y.row(1), [f32::INFINITY; 2]);
        assert_eq!(y.row(2), [0.0; 2]);
    }
}

#[test]
fn products_in_float32_see_stored_values_exactly() {
    let weight = FrozenWeight::bf16(&random(300, 90, 0));
    let exact = FrozenWeight::float32(weight.to_matrix());
    let workspace = Workspace::with_precision(Precision::Float32);
    let product = |weight: &FrozenWeight| {
        let mut y = Matrix::zeros(9, 300);
        weight.forward(&workspace, ViewMut::of(&mut y), 0.0, 1.0, View::of(&random(9, 90, 1)));
        y
    };
    let (found, expected) = (product(&weight), product(&exact));
    for (found, expected) in found.data().iter().zip(expected.data()) {
        assert!((found - expected).abs() < 1e-5, "{found}, expected {expected}");
    }
}

#[test]
fn products_of_one_left_factor_are_the_same_bits_together_as_alone() {
    for kernels in units() {
        for kernels in [kernels.with_precision(Precision::Bf16), kernels.with_precision(Precision::Float32)] {
            let workspace = Workspace::with_kernels(kernels);
            for rows in [0, 1, 31, 40, 300] {
                let x = random(rows, 70, 0);
                let weights = [100, 16, 1, 33].map(|out| FrozenWeight::bf16(&random(out, 70, out as u64)));
                let mut together = weights.each_ref().map(|weight| Matrix::zeros(rows, weight.rows()));
                let pairs = weights.iter().zip(&mut together).collect();
                FrozenWeight::forward_each(&workspace, pairs, View::of(&x));
                for (weight, together) in weights.iter().zip(&together) {
                    assert_eq!(*together, weight.product(&workspace, &x), "{kernels:?}, {rows} × {}", weight.rows());
                }
            }
        }
    }
}
