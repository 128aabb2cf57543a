//! Tensors of the tests, and the files that they go through.

use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// Where the axes of `[batch, seq, heads, head_dim]` stand; each order is its own inverse.
pub(crate) const LAYOUTS: [(&str, &str, [usize; 4]); 3] =
    [("2", "1", [0, 1, 2, 3]), ("1", "2", [0, 2, 1, 3]), ("2", "0", [1, 0, 2, 3])];

/// `[batch, seq, heads, head_dim]`.
pub(crate) const BSHD: [usize; 4] = LAYOUTS[0].2;

/// A dense tensor.
#[derive(Clone, Debug)]
pub(crate) struct Values {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f64>,
}

impl Values {
    /// Values between -2 and 2 that look random, the same for the same seed.
    pub(crate) fn random(seed: u64, shape: [usize; 4]) -> Self {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as f64 / f64::from(1 << 29) - 2.0
        };
        let values = std::iter::repeat_with(next).take(shape.iter().product()).collect();
        Self { shape: shape.to_vec(), values }
    }

    /// The same values, as a type holds them.
    pub(crate) fn rounded(mut self, dtype: Dtype) -> Self {
        for value in &mut self.values {
            *value = match dtype {
                Dtype::F32 => f64::from(*value as f32),
                Dtype::F16 => f16::from_f64(*value).to_f64(),
                _ => bf16::from_f64(*value).to_f64(),
            };
        }
        self
    }

    /// The same tensor with its four axes in another order.
    pub(crate) fn permuted(&self, order: [usize; 4]) -> Self {
        let old: [usize; 4] = self.shape.as_slice().try_into().expect("four axes");
        let new = order.map(|axis| old[axis]);
        let index = |flat: usize| {
            let [_, n1, n2, n3] = new;
            let at = [flat / (n3 * n2 * n1), flat / (n3 * n2) % n1, flat / n3 % n2, flat % n3];
            let mut from = [0; 4];
            order.iter().zip(at).for_each(|(axis, at)| from[*axis] = at);
            ((from[0] * old[1] + from[1]) * old[2] + from[2]) * old[3] + from[3]
        };
        let values = (0..self.values.len()).map(|flat| self.values[index(flat)]).collect();
        Self { shape: new.to_vec(), values }
    }

    fn bytes(&self, dtype: Dtype) -> Vec<u8> {
        let encode = |value: &f64| match dtype {
            Dtype::F32 => (*value as f32).to_le_bytes().to_vec(),
            Dtype::F16 => f16::from_f64(*value).to_le_bytes().to_vec(),
            Dtype::BF16 => bf16::from_f64(*value).to_le_bytes().to_vec(),
            Dtype::I32 => (*value as i32).to_le_bytes().to_vec(),
            Dtype::I64 => (*value as i64).to_le_bytes().to_vec(),
            Dtype::U8 | Dtype::BOOL => vec![*value as u8],
            Dtype::F64 => value.to_le_bytes().to_vec(),
            other => panic!("the tests write no {other}"),
        };
        self.values.iter().flat_map(encode).collect()
    }
}

/// Writes a file of named tensors.
pub(crate) fn write(path: &Path, tensors: &[(&str, &Values, Dtype)]) {
    let data: Vec<Vec<u8>> = tensors.iter().map(|(_, values, dtype)| values.bytes(*dtype)).collect();
    let views = tensors.iter().zip(&data).map(|((name, values, dtype), data)| {
        (*name, TensorView::new(*dtype, values.shape.clone(), data).expect("the bytes fit the shape"))
    });
    std::fs::write(path, safetensors::serialize(views, None).expect("it serialises"))
        .expect("it can be written");
}

/// A tensor of a file, and its type.
pub(crate) fn read(path: &Path, name: &str) -> (Values, Dtype) {
    let bytes = std::fs::read(path).expect("the file is there");
    let file = SafeTensors::deserialize(&bytes).expect("it is a safetensors file");
    let tensor = file.tensor(name).unwrap_or_else(|_| panic!("{name} is among {:?}", file.names()));
    let data = tensor.data();
    let values = match tensor.dtype() {
        Dtype::F32 => data.as_chunks().0.iter().map(|word| f64::from(f32::from_le_bytes(*word))).collect(),
        Dtype::F16 => data.as_chunks().0.iter().map(|word| f16::from_le_bytes(*word).to_f64()).collect(),
        Dtype::BF16 => data.as_chunks().0.iter().map(|word| bf16::from_le_bytes(*word).to_f64()).collect(),
        other => panic!("the tests read no {other}"),
    };
    (Values { shape: tensor.shape().to_vec(), values }, tensor.dtype())
}

/// Names of a file's tensors.
pub(crate) fn tensor_names(path: &Path) -> Vec<String> {
    let bytes = std::fs::read(path).expect("the file is there");
    let file = SafeTensors::deserialize(&bytes).expect("it is a safetensors file");
    let mut names: Vec<String> = file.names().into_iter().map(str::to_owned).collect();
    names.sort();
    names
}

/// The norm of the difference, divided by that of what is expected. What is -inf in one must be so in both, and what is
/// expected to be all zeros must be.
pub(crate) fn relative_error(found: &Values, expected: &Values) -> f64 {
    assert_eq!(found.shape, expected.shape);
    let (mut difference, mut whole) = (0.0, 0.0);
    for (found, expected) in found.values.iter().zip(&expected.values).filter(|(a, b)| a != b) {
        difference += (found - expected).powi(2);
    }
    for expected in expected.values.iter().filter(|value| value.is_finite()) {
        whole += expected.powi(2);
    }
    if difference == 0.0 { 0.0 } else { (difference / whole).sqrt() }
}
