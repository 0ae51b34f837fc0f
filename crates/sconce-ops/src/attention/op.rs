//! The kernel as an operation of candle's graph.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread::{self, ThreadId},
};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor, bail};

use super::{
    kernel::{Gradients, Inputs, Saved, Target, View, backward, forward, padding},
    options::Plan,
};
use crate::{kernel::cpu_slice, product::Float};

/// Attention over CPU tensors, all f32 or all f64, none of them empty.
pub(super) fn attention(source: Source, plan: Plan) -> Result<Tensor> {
    match source.dtype() {
        DType::F32 => typed::<f32>(source, plan),
        DType::F64 => typed::<f64>(source, plan),
        other => bail!("attention: no kernel for {other:?}"),
    }
}

/// The arguments that a gradient can reach, besides the mask.
pub(super) enum Source {
    /// `q`, `k`, `v` `(B, heads, N, D)`.
    Separate([Tensor; 3]),
    /// `qkv` `(B, N, 3 * heads * D)`.
    Packed(Tensor),
}

impl Source {
    fn dtype(&self) -> DType {
        match self {
            Self::Separate([q, ..]) => q.dtype(),
            Self::Packed(qkv) => qkv.dtype(),
        }
    }

    fn detach(&self) -> Self {
        match self {
            Self::Separate(qkv) => Self::Separate(qkv.each_ref().map(Tensor::detach)),
            Self::Packed(qkv) => Self::Packed(qkv.detach()),
        }
    }
}

fn typed<T: Float>(source: Source, plan: Plan) -> Result<Tensor> {
    let bias = plan.bias.clone().filter(Tensor::track_op);
    let tracked = bias.is_some()
        || match &source {
            Source::Separate(qkv) => qkv.iter().any(Tensor::track_op),
            Source::Packed(qkv) => qkv.track_op(),
        };
    let s = plan.shape;
    let plan = Plan { bias: plan.bias.as_ref().map(Tensor::detach), ..plan };
    let call = Call { source: source.detach(), plan, wants_bias: bias.is_some() };
    let mut out = Vec::new();
    let (shape, target) = match &source {
        Source::Separate(_) => {
            (Shape::from((s.b, s.h, s.nq, s.dv)), Target::separate(&mut out, [s.b, s.h, s.nq, s.dv]))
        }
        Source::Packed(_) => {
            (Shape::from((s.b, s.nq, s.h * s.dv)), Target::packed(&mut out, [s.b, s.h, s.nq, s.dv], 0, 1))
        }
    };
    let mut stats = Vec::new();
    let rows = tracked.then(|| Target::separate(&mut stats, [s.b, s.h, s.nq, 2]));
    call.with_inputs(|inputs: &Inputs<'_, T>| {
        forward(inputs, &target, rows.as_ref());
        Ok(())
    })?;
    #[expect(unsafe_code, reason = "the result is written by heads")]
    // SAFETY: the targets reserved this many elements and the kernel has written the rows of all queries of all heads.
    unsafe {
        out.set_len(shape.elem_count());
        stats.set_len(if tracked { s.b * s.h * s.nq * 2 } else { 0 });
    }
    let Source::Separate(qkv) = &source else {
        let Source::Packed(qkv) = &source else { bail!("attention: no such source") };
        if !tracked {
            return Tensor::from_vec(out, shape, qkv.device());
        }
        let node = Node::new(call, stats, out, shape);
        return match &bias {
            Some(bias) => qkv.apply_op2(bias, node),
            None => qkv.apply_op1(node),
        };
    };
    let [q, k, v] = qkv;
    if !tracked {
        return Tensor::from_vec(out, shape, q.device());
    }
    let node = Node::new(call, stats, out, shape);
    match &bias {
        None => q.apply_op3(k, v, node),
        // Candle's operations take at most three arguments, so values and mask share the third place: a token of one element
        // stands for both in the graph. The backward pass of the attention leaves their gradients in `handover`, and that of
        // the token, which candle always runs later, passes them on.
        Some(bias) => {
            let token = v.apply_op2(bias, Token(node.handover.clone()))?;
            q.apply_op3(k, &token, node)
        }
    }
}

/// A call and what it was made with, outside of the graph.
struct Call {
    source: Source,
    plan: Plan,
    wants_bias: bool,
}

impl Call {
    fn with_inputs<T: Float, R>(&self, f: impl FnOnce(&Inputs<'_, T>) -> Result<R>) -> Result<R> {
        let padding = padding(&self.plan)?;
        let bias_period = self.plan.bias.as_ref().map_or(1, |bias| bias.dims()[0].max(1));
        let bias = self.plan.bias.as_ref().map(Tensor::storage_and_layout);
        let bias = bias.as_ref().map(|(data, layout)| View::new(cpu_slice(data)?, layout)).transpose()?;
        let run = |[q, k, v]: [View<'_, T>; 3]| {
            let padding = padding.as_deref();
            f(&Inputs { q, k, v, bias, bias_period, padding, plan: &self.plan })
        };
        match &self.source {
            Source::Separate(qkv) => {
                let [q, k, v] = qkv.each_ref().map(Tensor::storage_and_layout);
                run([
                    View::new(cpu_slice(&q.0)?, q.1)?,
                    View::new(cpu_slice(&k.0)?, k.1)?,
                    View::new(cpu_slice(&v.0)?, v.1)?,
                ])
            }
            Source::Packed(qkv) => {
                let (data, layout) = qkv.storage_and_layout();
                let data = cpu_slice(&data)?;
                let (h, d) = (self.plan.shape.h, self.plan.shape.d);
                let part = |which| View::packed(data, layout, which, h, d);
                run([part(0)?, part(1)?, part(2)?])
            }
        }
    }

    /// A tensor laid out like the result.
    fn result<'a, T: Float>(&self, data: &'a Storage, layout: &Layout) -> Result<View<'a, T>> {
        let s = self.plan.shape;
        match &self.source {
            Source::Separate(_) => View::new(cpu_slice(data)?, layout),
            Source::Packed(_) => View::packed(cpu_slice(data)?, layout, 0, s.h, s.dv),
        }
    }

    /// The gradients of the source, three or one, and of the mask.
    fn gradients<T: Float>(
        &self,
        stats: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Vec<Tensor>, Option<Tensor>)> {
        let s = self.plan.shape;
        let (query, key, value) = ([s.b, s.h, s.nq, s.d], [s.b, s.h, s.nk, s.d], [s.b, s.h, s.nk, s.dv]);
        let mut memory: [Vec<T>; 3] = Default::default();
        let [dq, dk, dv] = &mut memory;
        let (q, k, v) = match &self.source {
            Source::Separate(_) => {
                (Target::separate(dq, query), Target::separate(dk, key), Target::separate(dv, value))
            }
            Source::Packed(_) => {
                (Target::packed(dq, query, 0, 3), Target::packed(dq, query, 1, 3), Target::packed(dq, query, 2, 3))
            }
        };
        let dims = self.plan.bias.as_ref().filter(|_| self.wants_bias).map(Tensor::dims4).transpose()?;
        let to = Gradients { q, k, v, bias: dims.map(|(b, h, i, j)| [b, h, i, j]) };
        let dbias = self.with_inputs(|inputs: &Inputs<'_, T>| {
            let (out, grad) = (out.storage_and_layout(), grad.storage_and_layout());
            let (stats, _) = stats.storage_and_layout();
            Ok(backward(
                inputs,
                &Saved {
                    out: self.result(&out.0, out.1)?,
                    grad: self.result(&grad.0, grad.1)?,
                    stats: cpu_slice(&stats)?,
                },
                &to,
            ))
        })?;
        let device = grad.device();
        let [mut dq, mut dk, mut dv] = memory;
        let count = |[b, h, n, d]: [usize; 4]| b * h * n * d;
        let source = match &self.source {
            Source::Separate(_) => {
                #[expect(unsafe_code, reason = "the gradients are written by heads")]
                // SAFETY: the targets reserved this many elements and the kernel has written all rows of all heads.
                unsafe {
                    dq.set_len(count(query));
                    dk.set_len(count(key));
                    dv.set_len(count(value));
                }
                vec![
                    Tensor::from_vec(dq, &query, device)?,
                    Tensor::from_vec(dk, &key, device)?,
                    Tensor::from_vec(dv, &value, device)?,
                ]
            }
            Source::Packed(_) => {
                #[expect(unsafe_code, reason = "the gradients are written by heads")]
                // SAFETY: as above; the three targets together cover the tensor.
                unsafe {
                    dq.set_len(3 * count(query));
                }
                vec![Tensor::from_vec(dq, (s.b, s.nq, 3 * s.h * s.d), device)?]
            }
        };
        let dbias = match (dbias, dims) {
            (Some(dbias), Some(dims)) => Some(Tensor::from_vec(dbias, dims, device)?),
            _ => None,
        };
        Ok((source, dbias))
    }
}

/// Gradients of values and mask on their way from an attention to its token, by thread: two threads may walk one graph.
type Handover = Arc<Mutex<Vec<(ThreadId, Tensor, Tensor)>>>;

/// The operation in the graph; it has been computed before it is put there.
struct Node {
    call: Call,
    stats: Result<Tensor>,
    result: Mutex<Option<CpuStorage>>,
    shape: Shape,
    handover: Handover,
}

impl Node {
    fn new<T: Float>(call: Call, stats: Vec<T>, out: Vec<T>, shape: Shape) -> Self {
        let len = stats.len();
        let stats = Tensor::from_vec(stats, len, &candle_core::Device::Cpu);
        let result = Mutex::new(Some(T::to_cpu_storage_owned(out)));
        Self { call, stats, result, shape, handover: Handover::default() }
    }

    fn take(&self) -> Result<(CpuStorage, Shape)> {
        match self.result.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(storage) => Ok((storage, self.shape.clone())),
            None => bail!("attention: a node of the graph is computed once"),
        }
    }

    fn gradients(&self, out: &Tensor, grad: &Tensor) -> Result<(Vec<Tensor>, Option<Tensor>)> {
        let stats = match &self.stats {
            Ok(stats) => stats,
            Err(error) => bail!("attention: {error}"),
        };
        match out.dtype() {
            DType::F32 => self.call.gradients::<f32>(stats, out, grad),
            _ => self.call.gradients::<f64>(stats, out, grad),
        }
    }
}

impl CustomOp1 for Node {
    fn name(&self) -> &'static str {
        "attention_packed"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.take()
    }

    fn bwd(&self, _: &Tensor, out: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.gradients(out, grad)?.0.pop())
    }
}

impl CustomOp2 for Node {
    fn name(&self) -> &'static str {
        "attention_packed"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.take()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, out: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (mut source, bias) = self.gradients(out, grad)?;
        Ok((source.pop(), bias))
    }
}

impl CustomOp3 for Node {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.take()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        third: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (mut source, bias) = self.gradients(out, grad)?;
        let (dv, dk, dq) = (source.pop(), source.pop(), source.pop());
        match (bias, dv) {
            (Some(bias), Some(dv)) => {
                let here = thread::current().id();
                let mut waiting = self.handover.lock().unwrap_or_else(PoisonError::into_inner);
                waiting.retain(|(thread, ..)| *thread != here);
                waiting.push((here, dv, bias));
                Ok((dq, dk, Some(third.zeros_like()?)))
            }
            (_, dv) => Ok((dq, dk, dv)),
        }
    }
}

/// Stands for values and mask in the graph.
struct Token(Handover);

impl CustomOp2 for Token {
    fn name(&self) -> &'static str {
        "attention_values_and_mask"
    }

    fn cpu_fwd(&self, v: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let one = match v {
            CpuStorage::F64(_) => CpuStorage::F64(vec![0.]),
            _ => CpuStorage::F32(vec![0.]),
        };
        Ok((one, Shape::from(1)))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let here = thread::current().id();
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match waiting.iter().position(|(thread, ..)| *thread == here) {
            Some(i) => {
                let (_, dv, bias) = waiting.swap_remove(i);
                Ok((Some(dv), Some(bias)))
            }
            None => bail!("attention: the gradients of values and mask have not been computed"),
        }
    }
}
