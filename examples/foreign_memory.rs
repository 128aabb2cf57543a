//! Attention on memory that another library allocated, on that library's stream.
//!
//! `cargo run --release --features cuda --example foreign_memory`
//!
//! Here the other library is cudarc; for one that speaks C it is the same addresses and the same stream. The result is
//! compared with the host's own kernel.

use std::process::ExitCode;

use attn::cuda::cudarc::driver::{CudaContext, DevicePtr, DevicePtrMut};
use attn::cuda::raw::{self, RawAttention, RawTensor};
use attn::cuda::{self, CudaQueue, FlashForm};
use attn::prelude::*;
use attn::{DType, kernel::Band};
use half::bf16;

const SEQ: usize = 1000;
const HEADS: usize = 8;
const HEAD_DIM: usize = 128;

#[parallel_attention(strategy = "none", backend = "flash", mask = "causal")]
struct OnTheHost;

fn main() -> ExitCode {
    match run() {
        Ok(error) if error < 4e-3 => {
            println!("{SEQ} positions, {HEADS} heads of {HEAD_DIM}: relative error {error:.1e}");
            ExitCode::SUCCESS
        }
        Ok(error) => {
            eprintln!("the result is wrong: relative error {error:.1e}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// How far the GPU's result is from the host's, relative to the whole.
fn run() -> Result<f64, Box<dyn std::error::Error>> {
    // cudarc panics where there is no driver: ask first.
    cuda::devices()?;
    let stream = CudaContext::new(0)?.new_stream()?;
    let x = Tensor::<bf16>::from_fn([1, SEQ, HEADS, HEAD_DIM], |[_, s, h, d]| {
        bf16::from_f32(((s * 31 + h * 17 + d * 7) % 97) as f32 / 24.0 - 2.0)
    })?;

    // Elements are 16 bits to cudarc: what they mean is said in the call.
    let on_device = stream.clone_htod::<u16, _>(bytemuck::cast_slice(x.as_slice()))?;
    let mut out = stream.alloc_zeros::<u16>(x.as_slice().len())?;
    {
        // cudarc orders its own streams by these guards, so they are held until the call is queued.
        let (address, _reading) = on_device.device_ptr(&stream);
        let (out_address, _writing) = out.device_ptr_mut(&stream);
        let laid = |address: u64| RawTensor {
            base: std::ptr::without_provenance_mut(address as usize),
            strides: [SEQ * HEADS * HEAD_DIM, HEADS * HEAD_DIM, HEAD_DIM],
        };
        let (query, out) = (laid(address), laid(out_address));
        // SAFETY: the stream is one of the GPU's primary context, and outlives the queue.
        let queue = unsafe { CudaQueue::from_raw(0, stream.cu_stream().cast()) }?;
        let call = RawAttention {
            query,
            key: query,
            value: query,
            out,
            lse: None,
            key_lengths: std::ptr::null(),
            dtype: DType::BF16,
            batch: 1,
            seq_q: SEQ,
            seq_k: SEQ,
            heads: HEADS,
            kv_heads: HEADS,
            head_dim: HEAD_DIM,
            band: Band::causal(SEQ, SEQ),
            scale: 1.0 / (HEAD_DIM as f32).sqrt(),
            form: FlashForm::Auto,
        };
        // SAFETY: both slices live until the stream has been read below, and cover the shapes given.
        unsafe { raw::attention(&queue, &call) }?;
    }
    let found = stream.clone_dtoh(&out)?;

    let wide = x.cast::<f32>()?;
    let right = World::threads(1).run(|comm| {
        let mut session = Session::open(comm)?;
        OnTheHost.attend(&mut session, &wide, &wide, &wide, &AttentionMetadata::default())
    })?;
    let (mut difference, mut norm) = (0.0, 0.0);
    for (found, right) in bytemuck::cast_slice::<_, bf16>(&found).iter().zip(right[0].as_slice()) {
        difference += (f64::from(found.to_f32()) - f64::from(*right)).powi(2);
        norm += f64::from(*right).powi(2);
    }
    Ok((difference / norm).sqrt())
}
