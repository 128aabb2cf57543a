//! What the CUDA driver says. A build without the feature `cuda` has nobody to ask.

use serde_json::{Value, json};

use super::facts::Fact;
use crate::report::bytes;

/// The driver and its devices.
pub(super) struct Gpus {
    /// The newest CUDA that the driver knows, such as 13.0; none without a driver.
    driver: Option<String>,
    /// Or why there are none.
    devices: Result<Vec<Gpu>, String>,
}

/// A device.
struct Gpu {
    name: String,
    /// Major and minor.
    compute_capability: (u32, u32),
    memory: u64,
    /// Whether the kernels are for it.
    supported: bool,
    /// Which ones it gets.
    kernels: Vec<Kernel>,
}

/// A kernel of attention.
struct Kernel {
    name: &'static str,
    elements: Vec<String>,
    head_dims: String,
}

/// The kernels that a card of a compute capability gets: of each name the first that is for it.
#[cfg(feature = "cuda")]
fn kernels(capability: (u32, u32)) -> Vec<Kernel> {
    let mut kernels: Vec<Kernel> = Vec::new();
    let mut names = Vec::new();
    for (name, info) in attn::cuda::kernels().into_iter().filter(|(_, info)| info.needs.is_of(capability)) {
        if names.contains(&info.name) {
            continue;
        }
        names.push(info.name);
        let elements = info.elements.iter().map(ToString::to_string).collect();
        kernels.push(Kernel { name, elements, head_dims: info.head_dims_text() });
    }
    kernels
}

impl Gpus {
    /// What the GPU kernels lack to run.
    pub(super) fn missing(&self) -> Option<String> {
        match &self.devices {
            Err(why) => Some(why.clone()),
            // The program takes the first.
            Ok(devices) if devices.first().is_some_and(|gpu| gpu.supported) => None,
            Ok(_) => Some(String::from(
                "a GPU of compute capability 8.0 or later (Ampere and what followed) as the first",
            )),
        }
    }
}

/// What the driver says. None if this build cannot ask.
#[cfg(feature = "cuda")]
pub(super) fn ask() -> Option<Gpus> {
    let driver = attn::cuda::driver_version().ok().map(|(major, minor)| format!("{major}.{minor}"));
    let devices = attn::cuda::devices().map_err(|error| error.to_string()).map(|devices| {
        let gpu = |device: attn::cuda::DeviceInfo| Gpu {
            name: device.name,
            compute_capability: device.compute_capability,
            memory: device.memory_bytes,
            supported: device.supported,
            kernels: kernels(device.compute_capability),
        };
        devices.into_iter().map(gpu).collect()
    });
    Some(Gpus { driver, devices })
}

#[cfg(not(feature = "cuda"))]
pub(super) fn ask() -> Option<Gpus> {
    None
}

/// The same as facts.
pub(super) fn facts(gpus: Option<Gpus>) -> [Fact; 2] {
    let Some(Gpus { driver, devices }) = gpus else {
        let text = "not asked by a build without CUDA";
        return ["cuda_driver", "gpus"].map(|key| Fact::said(key, Value::Null, text));
    };
    let driver = match driver {
        None => Fact::said("cuda_driver", Value::Null, "none found"),
        Some(version) => Fact::new("cuda_driver", version),
    };
    let mut texts = Vec::new();
    let mut values = Vec::new();
    for Gpu { name, compute_capability: (major, minor), memory, supported, kernels } in
        devices.unwrap_or_default()
    {
        let capability = format!("{major}.{minor}");
        let told: Vec<String> = kernels
            .iter()
            .map(|kernel| {
                format!("{} ({}; head_dim {})", kernel.name, kernel.elements.join(", "), kernel.head_dims)
            })
            .collect();
        texts.push(format!(
            "{name} (compute capability {capability}, {}), kernels: {}",
            bytes(memory),
            if told.is_empty() { String::from("none") } else { told.join(", ") }
        ));
        let kernels: Vec<Value> = kernels
            .into_iter()
            .map(|Kernel { name, elements, head_dims }| {
                json!({ "name": name, "elements": elements, "head_dims": head_dims })
            })
            .collect();
        values.push(json!({
            "name": name,
            "compute_capability": capability,
            "memory_bytes": memory,
            "supported": supported,
            "kernels": kernels,
        }));
    }
    let text = if texts.is_empty() { String::from("none found") } else { texts.join(", ") };
    [driver, Fact::said("gpus", values, text)]
}
