//! Choosing a device by name, with a guard so that one binary runs with and without a GPU.

use candle_core::Device;

/// Why no device came of a name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The name is none of `auto`, `cpu`, `cuda`, `cuda:N`.
    #[error("unknown device {0:?}: use auto, cpu, cuda or cuda:N")]
    Unknown(String),
    /// A GPU was asked for by name and cannot be had.
    #[error("no CUDA device {ordinal}: {why}")]
    Cuda {
        /// Which GPU.
        ordinal: usize,
        /// What the driver or the build said.
        why: String,
    },
}

/// The device of that name: `auto` (a GPU where one answers, else the CPU), `cpu`, `cuda`, `cuda:N`.
///
/// The environment variable `SCONCE_DEVICE` replaces `auto`. With `auto`, a GPU that does not answer is
/// logged and the CPU taken.
///
/// # Errors
/// An unknown name, or a GPU asked for by name that does not answer.
pub fn device(name: &str) -> Result<Device, DeviceError> {
    let from_env = std::env::var("SCONCE_DEVICE").ok();
    choose(name, from_env.as_deref())
}

fn choose(name: &str, from_env: Option<&str>) -> Result<Device, DeviceError> {
    let name = match (name, from_env) {
        ("auto", Some(wanted)) if !wanted.is_empty() => wanted,
        _ => name,
    };
    match name {
        "cpu" => Ok(Device::Cpu),
        "auto" => Ok(cuda(0).unwrap_or_else(|why| {
            tracing::debug!("{why}; using the CPU");
            Device::Cpu
        })),
        "cuda" => cuda(0),
        _ => match name.strip_prefix("cuda:").and_then(|n| n.parse().ok()) {
            Some(ordinal) => cuda(ordinal),
            None => Err(DeviceError::Unknown(name.to_string())),
        },
    }
}

fn cuda(ordinal: usize) -> Result<Device, DeviceError> {
    // The CUDA bindings panic when the driver's library is not there.
    match std::panic::catch_unwind(|| Device::new_cuda(ordinal)) {
        Ok(Ok(device)) => Ok(device),
        Ok(Err(error)) => Err(DeviceError::Cuda { ordinal, why: error.to_string() }),
        Err(_) => Err(DeviceError::Cuda { ordinal, why: "the CUDA driver could not be loaded".to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_is_always_there() {
        assert!(choose("cpu", None).unwrap().is_cpu());
        assert!(choose("auto", Some("cpu")).unwrap().is_cpu());
        assert!(choose("auto", None).is_ok());
    }

    #[test]
    fn a_name_that_means_nothing_is_an_error() {
        for name in ["gpu", "cuda:", "cuda:x", "", "cuda:-1"] {
            assert!(matches!(choose(name, None), Err(DeviceError::Unknown(_))), "{name}");
        }
        assert!(matches!(choose("auto", Some("tpu")), Err(DeviceError::Unknown(_))));
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_gpu_asked_for_by_name_does_not_fall_back() {
        assert!(matches!(choose("cuda:0", None), Err(DeviceError::Cuda { ordinal: 0, .. })));
        assert!(choose("auto", Some("cuda")).is_err());
    }
}
