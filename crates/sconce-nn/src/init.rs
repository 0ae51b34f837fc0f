//! Initial values of parameters, and how layers ask for them.
//!
//! A layer asks a `VarBuilder` for a tensor through [`param`] or [`buffer`] and says how it should start. A
//! [`ParamStore`](crate::ParamStore) fills it accordingly, from a generator of its own; any other builder (a checkpoint, candle's
//! `VarMap`) works too and is given the nearest initialiser that candle knows.

use std::cell::Cell;

use candle_core::{DType, Device, Result, Shape, Tensor, bail};
use candle_nn::VarBuilder;
use candle_nn::init::{FanInOut, NonLinearity, NormalOrUniform};
use sconce_ops::Generator;

/// Which side of a weight counts: its inputs (keeps the variance of activations) or its outputs (that of gradients).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fan {
    /// `shape[1] * receptive field`.
    In,
    /// `shape[0] * receptive field`.
    Out,
}

impl Fan {
    /// The number of connections for a weight `(out, in / groups, *kernel)`; 1 where the shape has no such axis.
    pub fn of(self, shape: &Shape) -> usize {
        let dims = shape.dims();
        let receptive: usize = dims.iter().skip(2).product();
        match self {
            Self::In => dims.get(1).map_or(1, |n| n * receptive),
            Self::Out => dims.first().map_or(1, |n| n * receptive),
        }
    }
}

/// How a parameter starts.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Init {
    /// Every element the same.
    Const(f64),
    /// All 0.
    Zeros,
    /// All 1.
    Ones,
    /// Gaussian.
    Normal {
        /// Mean.
        mean: f64,
        /// Standard deviation.
        std: f64,
    },
    /// Gaussian around 0, redrawn outside of the absolute interval [-2, 2] (not +-2 standard deviations): what vision
    /// transformers mean by `trunc_normal_`.
    TruncNormal {
        /// Standard deviation before the cut.
        std: f64,
    },
    /// Uniform in `[lo, hi)`.
    Uniform {
        /// Lower bound.
        lo: f64,
        /// Upper bound.
        hi: f64,
    },
    /// He et al. 2015: Gaussian with standard deviation `gain / sqrt(fan)`.
    KaimingNormal {
        /// Inputs or outputs.
        fan: Fan,
        /// `sqrt(2)` before a ReLU.
        gain: f64,
    },
    /// He et al. 2015: uniform within `+-gain * sqrt(3 / fan)`.
    KaimingUniform {
        /// Inputs or outputs.
        fan: Fan,
        /// `sqrt(2)` before a ReLU.
        gain: f64,
    },
    /// Glorot and Bengio 2010: uniform within `+-sqrt(6 / (fan_in + fan_out))`.
    XavierUniform,
    /// Glorot and Bengio 2010: Gaussian with standard deviation `sqrt(2 / (fan_in + fan_out))`.
    XavierNormal,
    /// LeCun et al. 1998: Gaussian of variance `1 / fan_in`, cut at two standard deviations and widened to keep that variance.
    LecunNormal,
    /// PyTorch's default for linear and convolution weights: uniform within `+-1 / sqrt(fan_in)`.
    TorchLinear,
    /// Values of a model's own making: orthogonal features, sinusoids.
    Custom(CustomInit),
}

/// An initialiser that a model brings along.
#[derive(Debug, Clone, Copy)]
pub struct CustomInit {
    /// Tells it from others; two initialisers of one name are equal.
    pub name: &'static str,
    /// The values for a shape, in any floating-point type on any device; the same for the same generator state.
    pub draw: fn(&Shape, &Generator) -> Result<Tensor>,
    /// What builders that know only candle's initialisers use instead.
    pub nearest: candle_nn::Init,
}

impl PartialEq for CustomInit {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// Standard deviation of a unit Gaussian cut at +-2.
const STD_CUT_AT_TWO: f64 = 0.879_625_661_034_239_8;

impl Init {
    /// PyTorch's default for the bias that belongs to a weight of this shape.
    pub fn torch_bias(weight: &Shape) -> Self {
        let bound = 1. / (Fan::In.of(weight).max(1) as f64).sqrt();
        Self::Uniform { lo: -bound, hi: bound }
    }

    /// A new tensor, the same bits for the same generator state. Advances the generator.
    ///
    /// # Errors
    /// Random initialisers need a floating-point `dtype`.
    pub fn tensor(
        &self,
        shape: impl Into<Shape>,
        dtype: DType,
        device: &Device,
        generator: &Generator,
    ) -> Result<Tensor> {
        let shape = shape.into();
        let fan_in = Fan::In.of(&shape).max(1) as f64;
        let fan_out = Fan::Out.of(&shape).max(1) as f64;
        let of = |fan: Fan| if fan == Fan::In { fan_in } else { fan_out };
        let normal = |mean: f64, std: f64| generator.normal(mean, std, shape.clone(), dtype, device);
        let uniform = |bound: f64| generator.uniform(-bound, bound, shape.clone(), dtype, device);
        match *self {
            Self::Const(value) => Tensor::full(value, shape, device)?.to_dtype(dtype),
            Self::Zeros => Tensor::zeros(shape, dtype, device),
            Self::Ones => Tensor::ones(shape, dtype, device),
            Self::Normal { mean, std } => normal(mean, std),
            Self::TruncNormal { std } => generator.trunc_normal(0., std, -2., 2., shape, dtype, device),
            Self::Uniform { lo, hi } => generator.uniform(lo, hi, shape, dtype, device),
            Self::KaimingNormal { fan, gain } => normal(0., gain / of(fan).sqrt()),
            Self::KaimingUniform { fan, gain } => uniform(gain * (3. / of(fan)).sqrt()),
            Self::XavierUniform => uniform((6. / (fan_in + fan_out)).sqrt()),
            Self::XavierNormal => normal(0., (2. / (fan_in + fan_out)).sqrt()),
            Self::LecunNormal => {
                let std = fan_in.sqrt().recip() / STD_CUT_AT_TWO;
                generator.trunc_normal(0., std, -2. * std, 2. * std, shape, dtype, device)
            }
            Self::TorchLinear => uniform(fan_in.sqrt().recip()),
            Self::Custom(custom) => {
                let values = (custom.draw)(&shape, generator)?;
                if values.shape() != &shape {
                    bail!("initialiser `{}`: {:?} instead of {shape:?}", custom.name, values.shape())
                }
                values.to_dtype(dtype)?.to_device(device)
            }
        }
    }

    /// What comes nearest among candle's own initialisers, for builders that know only those.
    fn nearest(self, shape: &Shape) -> candle_nn::Init {
        use candle_nn::Init as Candle;
        let kaiming = |dist, fan, gain| {
            let fan = if fan == Fan::In { FanInOut::FanIn } else { FanInOut::FanOut };
            Candle::Kaiming { dist, fan, non_linearity: NonLinearity::ExplicitGain(gain) }
        };
        let total = (Fan::In.of(shape) + Fan::Out.of(shape)).max(1) as f64;
        match self {
            Self::Const(value) => Candle::Const(value),
            Self::Zeros => Candle::Const(0.),
            Self::Ones => Candle::Const(1.),
            Self::Normal { mean, std } => Candle::Randn { mean, stdev: std },
            Self::TruncNormal { std } => Candle::Randn { mean: 0., stdev: std },
            Self::Uniform { lo, hi } => Candle::Uniform { lo, up: hi },
            Self::KaimingNormal { fan, gain } => kaiming(NormalOrUniform::Normal, fan, gain),
            Self::KaimingUniform { fan, gain } => kaiming(NormalOrUniform::Uniform, fan, gain),
            Self::XavierUniform => {
                let bound = (6. / total).sqrt();
                Candle::Uniform { lo: -bound, up: bound }
            }
            Self::XavierNormal => Candle::Randn { mean: 0., stdev: (2. / total).sqrt() },
            Self::LecunNormal => kaiming(NormalOrUniform::Normal, Fan::In, 1.),
            Self::TorchLinear => kaiming(NormalOrUniform::Uniform, Fan::In, 3f64.sqrt().recip()),
            Self::Custom(custom) => custom.nearest,
        }
    }
}

impl From<candle_nn::Init> for Init {
    fn from(init: candle_nn::Init) -> Self {
        match init {
            candle_nn::Init::Const(value) => Self::Const(value),
            candle_nn::Init::Randn { mean, stdev } => Self::Normal { mean, std: stdev },
            candle_nn::Init::Uniform { lo, up } => Self::Uniform { lo, hi: up },
            candle_nn::Init::Kaiming { dist, fan, non_linearity } => {
                let fan = if matches!(fan, FanInOut::FanIn) { Fan::In } else { Fan::Out };
                let gain = non_linearity.gain();
                match dist {
                    NormalOrUniform::Normal => Self::KaimingNormal { fan, gain },
                    NormalOrUniform::Uniform => Self::KaimingUniform { fan, gain },
                }
            }
        }
    }
}

/// A trainable parameter called `name` below the builder's path.
///
/// # Errors
/// The builder's: a checkpoint that lacks the name or holds another shape.
pub fn param(vb: &VarBuilder, shape: impl Into<Shape>, name: &str, init: Init) -> Result<Tensor> {
    request(vb, shape.into(), name, Request { init, role: Role::Trained })
}

/// A parameter that the model's authors keep as it starts: counted, saved and loaded like the others, not trained.
///
/// # Errors
/// As [`param`].
pub fn frozen(vb: &VarBuilder, shape: impl Into<Shape>, name: &str, init: Init) -> Result<Tensor> {
    Ok(request(vb, shape.into(), name, Request { init, role: Role::Frozen })?.detach())
}

/// A tensor that is saved and loaded with the model and not trained, such as running statistics; starts at `value`.
///
/// From a [`ParamStore`](crate::ParamStore) it comes as a variable, so that `Var::from_tensor` shares its storage.
///
/// # Errors
/// As [`param`].
pub fn buffer(vb: &VarBuilder, shape: impl Into<Shape>, name: &str, value: f64) -> Result<Tensor> {
    buffer_with(vb, shape, name, Init::Const(value))
}

/// As [`buffer`] for one that does not start at the same value everywhere.
///
/// # Errors
/// As [`param`].
pub fn buffer_with(vb: &VarBuilder, shape: impl Into<Shape>, name: &str, init: Init) -> Result<Tensor> {
    request(vb, shape.into(), name, Request { init, role: Role::Buffer })
}

/// What the tensor that a builder is asked for on this thread is to be, for authors of builders; `None` when the layer did
/// not ask through this module.
pub fn requested_role() -> Option<Role> {
    REQUEST.get().map(|request| request.role)
}

/// What a tensor is to a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A parameter that training changes.
    Trained,
    /// A parameter that stays as it is.
    Frozen,
    /// Not a parameter: running statistics and the like.
    Buffer,
}

/// What a layer wants beyond candle's own hint.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request {
    pub(crate) init: Init,
    pub(crate) role: Role,
}

thread_local! {
    // `SimpleBackend::get` can carry candle's `Init` only; builders call it on the same thread, whatever wraps them.
    static REQUEST: Cell<Option<Request>> = const { Cell::new(None) };
}

/// The request of the layer that is asking on this thread, if it asked through this module.
pub(crate) fn take_request() -> Option<Request> {
    REQUEST.take()
}

fn request(vb: &VarBuilder, shape: Shape, name: &str, request: Request) -> Result<Tensor> {
    /// Clears the request of a builder that did not take it, also when it panics.
    struct Clear;
    impl Drop for Clear {
        fn drop(&mut self) {
            REQUEST.set(None);
        }
    }
    let nearest = request.init.nearest(&shape);
    REQUEST.set(Some(request));
    let _clear = Clear;
    vb.get_with_hints(shape, name, nearest)
}
