use candle_core::{DType, Device, Result, Tensor};

/// Type of one stored element, as files know it: some of them candle has only in a wider type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    Bool,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F8E4M3,
    F16,
    BF16,
    F32,
    F64,
    /// Complex, quantised, packed: listed by name so that a request can say why it fails.
    Other(&'static str),
}

impl Element {
    /// Bytes per element; `None` for types that are not read.
    pub(crate) fn size(self) -> Option<usize> {
        Some(match self {
            Self::Bool | Self::U8 | Self::I8 | Self::F8E4M3 => 1,
            Self::U16 | Self::I16 | Self::F16 | Self::BF16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
            Self::Other(_) => return None,
        })
    }

    /// The candle type that holds every value.
    pub(crate) fn dtype(self) -> Option<DType> {
        Some(match self {
            Self::Bool | Self::U8 => DType::U8,
            Self::I8 | Self::I16 => DType::I16,
            Self::U16 | Self::U32 => DType::U32,
            Self::I32 => DType::I32,
            Self::U64 | Self::I64 => DType::I64,
            Self::F8E4M3 => DType::F8E4M3,
            Self::F16 => DType::F16,
            Self::BF16 => DType::BF16,
            Self::F32 => DType::F32,
            Self::F64 => DType::F64,
            Self::Other(_) => return None,
        })
    }

    /// Name in error messages.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Other(name) => name.to_string(),
            known => format!("{known:?}").to_lowercase(),
        }
    }

    /// A tensor from little-endian bytes; `bytes.len()` must be `size * product(shape)`.
    pub(crate) fn decode(self, bytes: &[u8], shape: &[usize], device: &Device) -> Result<Tensor> {
        let elements = shape.iter().product::<usize>();
        if self.size().and_then(|size| size.checked_mul(elements)) != Some(bytes.len()) {
            candle_core::bail!("{} bytes for shape {shape:?} of {}", bytes.len(), self.name())
        }
        match self {
            Self::Bool => Tensor::from_vec(bytes.iter().map(|&b| u8::from(b != 0)).collect::<Vec<_>>(), shape, device),
            Self::I8 => Tensor::from_vec(bytes.iter().map(|&b| i16::from(b as i8)).collect::<Vec<_>>(), shape, device),
            Self::U16 => {
                let wide = bytes.as_chunks::<2>().0.iter().map(|&b| u32::from(u16::from_le_bytes(b)));
                Tensor::from_vec(wide.collect::<Vec<_>>(), shape, device)
            }
            Self::U64 => {
                let signed = bytes.as_chunks::<8>().0.iter().map(|&b| i64::try_from(u64::from_le_bytes(b)));
                Tensor::from_vec(signed.collect::<std::result::Result<Vec<_>, _>>()?, shape, device)
            }
            _ => match self.dtype() {
                Some(dtype) => Tensor::from_raw_buffer(bytes, dtype, shape, device),
                None => candle_core::bail!("element type {} is not supported", self.name()),
            },
        }
    }
}

impl From<safetensors::Dtype> for Element {
    fn from(dtype: safetensors::Dtype) -> Self {
        use safetensors::Dtype as St;
        match dtype {
            St::BOOL => Self::Bool,
            St::U8 => Self::U8,
            St::I8 => Self::I8,
            St::U16 => Self::U16,
            St::I16 => Self::I16,
            St::U32 => Self::U32,
            St::I32 => Self::I32,
            St::U64 => Self::U64,
            St::I64 => Self::I64,
            St::F8_E4M3 => Self::F8E4M3,
            St::F16 => Self::F16,
            St::BF16 => Self::BF16,
            St::F32 => Self::F32,
            St::F64 => Self::F64,
            St::C64 => Self::Other("complex64"),
            _ => Self::Other("packed or unusual 8-bit float"),
        }
    }
}

impl Element {
    /// From the class of a torch storage (`FloatStorage`) or the name of a torch dtype (`float32`).
    pub(crate) fn from_torch(name: &str) -> Self {
        match name {
            "BoolStorage" | "bool" => Self::Bool,
            "ByteStorage" | "UntypedStorage" | "uint8" => Self::U8,
            "CharStorage" | "int8" => Self::I8,
            "uint16" => Self::U16,
            "ShortStorage" | "int16" | "short" => Self::I16,
            "uint32" => Self::U32,
            "IntStorage" | "int32" | "int" => Self::I32,
            "uint64" => Self::U64,
            "LongStorage" | "int64" | "long" => Self::I64,
            "float8_e4m3fn" => Self::F8E4M3,
            "HalfStorage" | "float16" | "half" => Self::F16,
            "BFloat16Storage" | "bfloat16" => Self::BF16,
            "FloatStorage" | "float32" | "float" => Self::F32,
            "DoubleStorage" | "float64" | "double" => Self::F64,
            _ => Self::Other("complex, quantised or unknown torch storage"),
        }
    }

    /// From NumPy's code of a type without its byte order: `f4`.
    pub(crate) fn from_numpy(code: &str) -> Self {
        match code {
            "b1" => Self::Bool,
            "u1" => Self::U8,
            "i1" => Self::I8,
            "u2" => Self::U16,
            "i2" => Self::I16,
            "u4" => Self::U32,
            "i4" => Self::I32,
            "u8" => Self::U64,
            "i8" => Self::I64,
            "f2" => Self::F16,
            "f4" => Self::F32,
            "f8" => Self::F64,
            _ => Self::Other("complex, text, object or record of NumPy"),
        }
    }
}
