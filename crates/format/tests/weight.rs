//! Every form of a weight by the methods that all have.

mod common;

use common::{levels, rows, scale_values};
use sparamx_format::container::{self, Dtype, TensorFile, TensorOut};
use sparamx_format::{ElementKind, Elements, Scales, Weight, WeightFormat};

/// Two strips, more than a tile and a group of columns.
const N: usize = 17;
const K: usize = 70;
const GROUP: usize = 32;

/// A weight with levels that every form has, or with `highest`, and its elements as numbers.
fn sample(format: WeightFormat, highest: i8) -> (Weight, Vec<f32>) {
    let (scales, group) = match format.element() {
        ElementKind::Bf16 => {
            let bits = rows(N, K, 0.5, 1);
            let numbers = bits
                .iter()
                .map(|&bits| f32::from_bits(u32::from(bits) << 16));
            let weight = Weight::of_bits(&bits, N, K, format.is_sparse()).unwrap();
            return (weight, numbers.collect());
        }
        ElementKind::Int8 => (scale_values(N, 2), K),
        ElementKind::Int4 => (scale_values(N * K.div_ceil(GROUP), 2), GROUP),
    };
    let levels = levels(N, K, 0.5, -8, highest, 3);
    let number = |(i, &level): (usize, &i8)| {
        let scale = scales[i / K * K.div_ceil(group) + i % K / group];
        f32::from(level) * scale
    };
    let numbers = levels.iter().enumerate().map(number).collect();
    let scales = match format.element() {
        ElementKind::Int8 => Scales::row(&scales, N).unwrap(),
        _ => Scales::group(&scales, N, K, GROUP).unwrap(),
    };
    let weight = Weight::of_levels(format, &levels, N, K, scales).unwrap();
    (weight, numbers)
}

/// All elements as numbers, by their bits.
fn numbers(weight: &Weight) -> Vec<u32> {
    let strips = (0..weight.strips()).flat_map(|s| weight.strip_to_f32(s));
    strips.map(f32::to_bits).collect()
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|v| v.to_bits()).collect()
}

/// The elements of a weight as they are stored.
fn elements(weight: &Weight) -> Vec<i32> {
    match weight.decode() {
        Elements::Bf16(bits) => bits.into_iter().map(i32::from).collect(),
        Elements::Levels(levels, _) => levels.into_iter().map(i32::from).collect(),
    }
}

#[test]
fn every_form_has_the_elements_it_was_made_of() {
    for format in WeightFormat::ALL {
        let (weight, wanted) = sample(format, 7);
        assert_eq!((weight.format(), weight.n(), weight.k()), (format, N, K));
        assert_eq!(numbers(&weight), bits(&wanted), "{format}");
        let elements = elements(&weight);
        let stored = elements.iter().filter(|&&element| element != 0).count();
        assert_eq!(weight.nnz(), stored, "{format}");
        assert_eq!(
            weight.scales().is_none(),
            weight.bits().is_some(),
            "{format}"
        );
        assert_eq!(weight.strip_to_f32(1).len(), K, "a row of the last strip");
    }
}

#[test]
fn bytes_before_a_strip_grow_to_all() {
    for format in WeightFormat::ALL {
        let (weight, _) = sample(format, 7);
        let before: Vec<usize> = (0..=2).map(|s| weight.bytes_before(s)).collect();
        assert_eq!((before[0], before[2]), (0, weight.bytes()), "{format}");
        assert!(
            0 < before[1] && before[1] < before[2],
            "{format}: {before:?}"
        );
    }
}

#[test]
fn an_expanded_weight_has_the_same_elements() {
    for format in WeightFormat::ALL {
        let (weight, wanted) = sample(format, 7);
        let expanded = weight.expand().unwrap();
        assert_eq!(
            expanded.format(),
            WeightFormat::new(format.element(), false)
        );
        assert_eq!(numbers(&expanded), bits(&wanted), "{format}");
    }
    let (weight, wanted) = sample(WeightFormat::SparseI4, 8);
    let expanded = weight.expand().unwrap();
    assert_eq!(
        expanded.format(),
        WeightFormat::DenseI8,
        "dense int4 has no 8"
    );
    assert_eq!(numbers(&expanded), bits(&wanted));
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no file maps")]
fn what_is_written_is_read() {
    for format in WeightFormat::ALL {
        let (weight, _) = sample(format, 7);
        let rows = weight.bits().unwrap_or_default();
        let mut tensors = weight.tensors("w");
        if format == WeightFormat::DenseBf16 {
            let bytes = bytemuck::cast_slice(&rows);
            tensors.push(TensorOut::new("w", Dtype::BF16, vec![N, K], bytes));
        } else {
            let again = Weight::from_tensors(N, K, &weight.tensors("")).unwrap();
            assert_eq!(again.format(), format);
            assert_eq!(elements(&again), elements(&weight), "{format}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        container::write(&path, &tensors, &Default::default()).unwrap();
        let file = TensorFile::open(&path).unwrap();
        let read = Weight::read(&file, "w", N, K).unwrap();
        assert_eq!(read.format(), format);
        for weight in [read.in_memory().unwrap(), read] {
            assert_eq!(
                elements(&weight),
                elements(&sample(format, 7).0),
                "{format}"
            );
            assert_eq!(numbers(&weight), bits(&sample(format, 7).1), "{format}");
        }
    }
}

#[test]
#[should_panic(expected = "sparse bf16 weights have no levels")]
fn bf16_is_not_made_of_levels() {
    let scales = Scales::row(&[1.0], 1).unwrap();
    let _ = Weight::of_levels(WeightFormat::SparseBf16, &[1], 1, 1, scales);
}
