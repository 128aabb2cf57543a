//! What the GPU's kernels must do, wherever they run: `tests/sim.rs` runs it in the simulator, `tests/gpu.rs` on a GPU.

#![allow(dead_code, unreachable_pub, unused_macros, reason = "one test program uses what another does not")]

pub mod allocation;
pub mod attend;
pub mod case;
pub mod copy;
pub mod direct;
pub mod direct_faults;
pub mod edge;
pub mod eight_bits;
pub mod flash;
pub mod probes;
pub mod quantised;
pub mod refusals;
pub mod rig;
pub mod sage;
pub mod sdpa;
pub mod strategies;

/// Makes a test of each named function of `module`, for a rig.
macro_rules! each {
    ($rig:ty, $module:ident: $($name:ident),* $(,)?) => {
        mod $module {
            use super::*;
            $(
                #[test]
                fn $name() {
                    crate::kernels::$module::$name::<$rig>();
                }
            )*
        }
    };
}

/// Makes a test of each named function of `strategies`, for a rig and both element types.
macro_rules! each_strategy {
    ($rig:ty: $($name:ident),* $(,)?) => {
        mod strategies {
            use super::*;
            $(mod $name {
                use super::*;

                #[test]
                fn in_bf16() {
                    crate::kernels::strategies::$name::<$rig, half::bf16>();
                }

                #[test]
                fn in_f16() {
                    crate::kernels::strategies::$name::<$rig, half::f16>();
                }
            })*
        }
    };
}

/// Makes a test of each named function of `quantised`, for a rig.
macro_rules! each_quantised {
    ($rig:ty, $element:ty: $($name:ident),* $(,)?) => {
        mod quantised {
            use super::*;
            $(#[test]
            fn $name() {
                crate::kernels::quantised::$name::<$rig, $element>();
            })*
        }
    };
}

/// Makes a test of each named function of `flash`, for one kernel in both element types.
macro_rules! each_flash {
    ($rig:ty, $kernel:ident, $head_dim:literal, $which:expr; $($name:ident),* $(,)?) => {
        mod $kernel {
            use super::*;
            use crate::kernels::attend::{Kernel, Which};

            const KERNEL: Kernel = Kernel { head_dim: $head_dim, which: $which };

            $(mod $name {
                use super::*;

                #[test]
                fn in_bf16() {
                    crate::kernels::flash::$name::<half::bf16, $rig>(KERNEL);
                }

                #[test]
                fn in_f16() {
                    crate::kernels::flash::$name::<half::f16, $rig>(KERNEL);
                }
            })*
        }
    };
}

/// Makes a test of each named function of `flash`, for one kernel in one element type.
macro_rules! each_flash_of {
    ($element:ty; $rig:ty, $kernel:ident, $head_dim:literal, $which:expr; $($name:ident),* $(,)?) => {
        mod $kernel {
            use super::*;
            use crate::kernels::attend::{Kernel, Which};

            $(#[test]
            fn $name() {
                crate::kernels::flash::$name::<$element, $rig>(Kernel { head_dim: $head_dim, which: $which });
            })*
        }
    };
}

/// Makes a test of each named function of `sage`, for one element type.
macro_rules! each_sage {
    ($element:ty; $rig:ty, $name:ident, $head_dim:literal, $which:ident: $($test:ident),* $(,)?) => {
        mod $name {
            use super::*;
            use crate::kernels::sage::{Kernel, Which};

            $(#[test]
            fn $test() {
                let kernel = Kernel { head_dim: $head_dim, which: Which::$which };
                crate::kernels::sage::$test::<$element, $rig>(kernel);
            })*
        }
    };
}

/// Everything, for a rig.
macro_rules! kernel_tests {
    ($rig:ty) => {
        kernel_tests!(one half::f16; $rig, d64_simple, 64, Which::Sm90(attn::cuda::FlashForm::Simple));
        kernel_tests!(one half::bf16; $rig, d64_overlapped, 64, Which::Sm90(attn::cuda::FlashForm::Overlapped));
        kernel_tests!(one half::bf16; $rig, d128_simple, 128, Which::Sm90(attn::cuda::FlashForm::Simple));
        kernel_tests!($rig, d128_overlapped, 128, Which::Sm90(attn::cuda::FlashForm::Overlapped));
        kernel_tests!(one half::f16; $rig, d256_simple, 256, Which::Sm90(attn::cuda::FlashForm::Simple));
        kernel_tests!(one half::bf16; $rig, d256_overlapped, 256, Which::Sm90(attn::cuda::FlashForm::Overlapped));
        kernel_tests!(also half::f16; $rig, d32_overlapped, 32, Which::Sm90(attn::cuda::FlashForm::Overlapped));
        kernel_tests!(also half::bf16; $rig, d96_overlapped, 96, Which::Sm90(attn::cuda::FlashForm::Overlapped));
        kernel_tests!(also half::f16; $rig, d192_overlapped, 192, Which::Sm90(attn::cuda::FlashForm::Overlapped));
        kernel_tests!(masked half::bf16; $rig, d32_masked, 32, Which::Sm90(attn::cuda::FlashForm::Overlapped));
        kernel_tests!(masked half::f16; $rig, d64_masked, 64, Which::Sm90(attn::cuda::FlashForm::Overlapped));
        kernel_tests!(masked half::f16; $rig, d96_masked, 96, Which::Sm90(attn::cuda::FlashForm::Overlapped));
        kernel_tests!(masked half::bf16; $rig, d128_masked, 128, Which::Sm90(attn::cuda::FlashForm::Overlapped));
        kernel_tests!(masked half::bf16; $rig, d192_masked, 192, Which::Sm90(attn::cuda::FlashForm::Overlapped));
        kernel_tests!(masked half::f16; $rig, d256_masked, 256, Which::Sm90(attn::cuda::FlashForm::Overlapped));
        kernel_tests!(also half::f16; $rig, sm80_d32, 32, Which::Sm80);
        kernel_tests!($rig, sm80_d64, 64, Which::Sm80);
        kernel_tests!(masked half::bf16; $rig, sm80_d64_masked, 64, Which::Sm80);
        kernel_tests!(masked half::f16; $rig, sm80_d128_masked, 128, Which::Sm80);
        kernel_tests!(also half::bf16; $rig, sm80_d96, 96, Which::Sm80);
        kernel_tests!(also half::f16; $rig, sm80_d128, 128, Which::Sm80);
        kernel_tests!(also half::bf16; $rig, sm80_d192, 192, Which::Sm80);
        kernel_tests!(also half::f16; $rig, sm80_d256, 256, Which::Sm80);
        each_flash! { $rig, sdpa_as_the_others, 40, Which::Sdpa;
            heads_share_keys,
            padding_reaches_nobody,
            one_hop_is_one_call,
            products_of_minus_infinity_weigh_nothing,
            a_nan_reaches_who_attends_it,
            a_nan_survives_the_next_hop,
            results_do_not_depend_on_the_order_of_threads,
        }
        mod sdpa {
            use super::*;
            use crate::kernels::sdpa;

            #[test]
            fn rows_of_any_length() {
                sdpa::rows_of_any_length::<f32, $rig>();
                sdpa::rows_of_any_length::<half::bf16, $rig>();
            }

            #[test]
            fn rows_anywhere() {
                sdpa::rows_anywhere::<f32, $rig>();
                sdpa::rows_anywhere::<half::f16, $rig>();
            }

            #[test]
            fn masks_and_scales() {
                sdpa::masks_and_scales::<f32, $rig>();
                sdpa::masks_and_scales::<half::bf16, $rig>();
            }
        }

        kernel_tests!(sage half::f16; $rig, sage_sm90_d64, 64, Sm90);
        kernel_tests!(sage half::bf16; $rig, sage_sm90_d128, 128, Sm90);
        kernel_tests!(sage half::bf16; $rig, sage_sm80_d64, 64, Sm80);
        kernel_tests!(sage half::f16; $rig, sage_sm80_d128, 128, Sm80);

        each! { $rig, allocation: steady_calls_allocate_nothing }
        each! { $rig, copy:
            every_element_of_a_random_batch_arrives,
            addresses_off_the_size_of_an_element_are_fine,
            more_copies_than_one_launch_takes,
            long_runs_are_cut_into_many_tiles,
            integers_and_bytes_travel,
            an_empty_batch_does_nothing,
            elements_of_twelve_bytes_are_refused,
        }
        each! { $rig, edge:
            rows_are_normalised_rotated_and_rounded_once,
            batches_of_every_size_are_done,
            what_is_not_rotated_stays,
            what_is_off_16_bytes_is_refused,
        }
        each! { $rig, direct:
            every_element_of_random_boxes_arrives,
            more_boxes_than_one_message_takes,
            a_hundred_exchanges_follow_each_other,
            plans_of_tensors_are_carried_out,
            a_late_rank_is_waited_for,
            nobody_leaves_before_all_is_written,
            blocks_go_round_in_the_order_of_a_ring,
        }
        each! { $rig, direct_faults:
            a_rank_that_does_not_come_is_named,
            boxes_that_do_not_fit_are_an_error_for_all,
            an_abort_ends_all_waits,
            a_rank_that_leaves_ends_the_others_waits,
            an_error_on_the_way_round_reaches_all,
            more_ranks_than_a_group_takes_are_told_so,
        }
        each! { $rig, refusals:
            a_call_in_order_is_taken,
            head_dims_without_a_kernel,
            shapes_that_disagree,
            addresses_and_strides_off_16_bytes,
            strides_that_the_copy_engine_has_no_room_for,
            repeated_and_scattered_elements,
            scales_that_are_not_above_zero,
            masks_that_do_not_fit,
            a_state_of_another_shape,
            copies_between_unlike_tensors,
            foreign_memory,
        }
        each_strategy! { $rig:
            two_and_four_ranks_are_one,
            causal_masks_cross_ranks,
            padding_crosses_ranks,
            joint_tokens_are_attended_once,
            uneven_shares_cover_the_whole,
            edges_are_done_on_the_way,
            segments_and_dense_masks_cross_ranks,
        }
        each_quantised! { $rig, half::bf16:
            ranks_make_what_one_would,
            key_heads_go_to_several_ranks,
            padding_is_nobodys,
            joint_tokens_come_first,
            uneven_shares_cover_the_whole,
            masks_cross_ranks,
            ranks_are_as_near_as_one,
            half_the_bytes_go,
        }

        mod probes {
            use super::*;

            #[test]
            fn tensor_cores_multiply_bf16() {
                crate::kernels::probes::tensor_cores_multiply::<half::bf16, $rig>();
            }

            #[test]
            fn tensor_cores_multiply_f16() {
                crate::kernels::probes::tensor_cores_multiply::<half::f16, $rig>();
            }

            #[test]
            fn tensor_cores_multiply_8_bits() {
                crate::kernels::probes::tensor_cores_multiply_8_bits::<$rig>();
            }

            #[test]
            fn busy_tensor_cores_multiply_right() {
                crate::kernels::probes::busy_tensor_cores_multiply_right::<half::bf16, $rig>();
                crate::kernels::probes::busy_tensor_cores_multiply_right::<half::f16, $rig>();
            }

            #[test]
            fn a_width_without_an_instruction_is_an_error() {
                crate::kernels::probes::a_width_without_an_instruction_is_an_error::<$rig>();
            }

            #[test]
            fn the_copy_engine_swizzles() {
                crate::kernels::probes::the_copy_engine_swizzles::<half::bf16, $rig>();
                crate::kernels::probes::the_copy_engine_swizzles::<half::f16, $rig>();
            }
        }
    };
    // A head_dim that has its code in common with others.
    (also $element:ty; $rig:ty, $kernel:ident, $head_dim:literal, $which:expr) => {
        each_flash_of! { $element; $rig, $kernel, $head_dim, $which;
            lengths_round_the_borders_of_tiles,
            heads_share_keys,
            padding_reaches_nobody,
            hops_carry_the_state,
            heads_come_in_sections,
        }
    };
    // What has kernels of its own: masks that follow a cover, and query heads that share a tile.
    (masked $element:ty; $rig:ty, $kernel:ident, $head_dim:literal, $which:expr) => {
        each_flash_of! { $element; $rig, $kernel, $head_dim, $which;
            segments_of_every_kind,
            dense_masks_of_every_kind,
            documents_are_found_in_long_sequences,
            few_queries_share_a_tile,
        }
    };
    (sage $element:ty; $rig:ty, $name:ident, $head_dim:literal, $which:ident) => {
        each_sage! { $element; $rig, $name, $head_dim, $which:
            tensors_in_8_bits_are_exact,
            zeros_are_attended_alike,
            lengths_round_the_borders_of_tiles,
            bands_of_every_kind,
            heads_share_keys,
            padding_reaches_nobody,
            masks_of_every_kind,
            any_layout_will_do,
            hops_carry_the_state,
            a_state_goes_on_in_other_kernels,
            a_nan_is_not_hidden,
            a_nan_survives_the_next_hop,
            results_do_not_depend_on_the_order_of_threads,
        }
    };
    // In one element type: they differ in the instruction that multiplies and the one that rounds.
    (one $element:ty; $rig:ty, $kernel:ident, $head_dim:literal, $which:expr) => {
        each_flash_of! { $element; $rig, $kernel, $head_dim, $which;
            lengths_round_the_borders_of_tiles,
            bands_of_every_kind,
            heads_share_keys,
            padding_reaches_nobody,
            lengths_cross_to_the_device,
            any_layout_will_do,
            hops_carry_the_state,
            one_hop_is_one_call,
            numbers_of_every_size,
            products_of_minus_infinity_weigh_nothing,
            a_nan_reaches_who_attends_it,
            a_nan_survives_the_next_hop,
            results_do_not_depend_on_the_order_of_threads,
            heads_come_in_sections,
        }
    };
    ($rig:ty, $kernel:ident, $head_dim:literal, $which:expr) => {
        each_flash! { $rig, $kernel, $head_dim, $which;
            lengths_round_the_borders_of_tiles,
            bands_of_every_kind,
            heads_share_keys,
            padding_reaches_nobody,
            lengths_cross_to_the_device,
            any_layout_will_do,
            hops_carry_the_state,
            one_hop_is_one_call,
            numbers_of_every_size,
            products_of_minus_infinity_weigh_nothing,
            a_nan_reaches_who_attends_it,
            a_nan_survives_the_next_hop,
            results_do_not_depend_on_the_order_of_threads,
            heads_come_in_sections,
        }
    };
}
