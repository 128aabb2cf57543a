//! The plain kernel where the others do not go: in f32, for rows of any length, anywhere, under any scale.

use attn::Element;
use attn::cuda::SdpaGpu;
use attn::tensor::TensorLayout;

use crate::kernels::attend::{verify_in_hops, verify_of};
use crate::kernels::case::{Case, Dense, Segments};
use crate::kernels::rig::{Place, Rig};

/// Rows of one element, of some, of as many as a warp has columns for, of more.
pub fn rows_of_any_length<T: Element, R: Rig>() {
    for head_dim in [1, 3, 31, 33, 80, 256, 257, 300] {
        let case = Case::new(9, 40, head_dim).heads(1, 2, 1).causal();
        verify_of::<T, R, _>(&case, &SdpaGpu);
        verify_in_hops::<T, R, _>(&case, &SdpaGpu, &[0..33, 33..40]);
    }
}

/// Rows that begin at any element, heads that one key head is repeated for, every order of axes.
pub fn rows_anywhere<T: Element, R: Rig>() {
    for layout in TensorLayout::ALL {
        let place = Place { layout, margins: [[0, 1], [1, 0], [1, 1], [1, 2]] };
        let case = Case { place, lse: Some(place), ..Case::new(20, 37, 21).heads(2, 2, 2) };
        verify_of::<T, R, _>(&case, &SdpaGpu);
        verify_in_hops::<T, R, _>(&case, &SdpaGpu, &[0..20, 20..37]);
    }
}

/// Any mask, all at once, and scales that tensor cores' kernels refuse.
pub fn masks_and_scales<T: Element, R: Rig>() {
    let case = Case::new(40, 70, 24).heads(2, 4, 2);
    for scale in [0.0, -1.0, 2.0] {
        verify_of::<T, R, _>(&Case { scale, ..case }, &SdpaGpu);
    }
    for dense in [Dense::Scattered, Dense::Shared, Dense::Nothing] {
        let case = Case { dense: Some(dense), segments: Some(Segments::Packed(30)), ..case };
        let case = Case { lengths: Some(&[70, 41]), ..case }.band(-30, 40);
        verify_of::<T, R, _>(&case, &SdpaGpu);
        verify_in_hops::<T, R, _>(&case, &SdpaGpu, &[35..70, 0..35]);
    }
}

/// Some of each in little time: what a fault planted in the kernel must not survive.
pub fn a_bit_of_everything<R: Rig>() {
    let case = Case::new(12, 70, 24).heads(2, 6, 2);
    verify_of::<f32, R, _>(&Case { lengths: Some(&[70, 41]), ..case }.band(-30, 40), &SdpaGpu);
    let masked = Case { dense: Some(Dense::Scattered), segments: Some(Segments::Scattered(3)), ..case };
    verify_of::<f32, R, _>(&masked, &SdpaGpu);
    verify_in_hops::<f32, R, _>(&Case::new(5, 70, 300), &SdpaGpu, &[0..33, 33..70]);
}
