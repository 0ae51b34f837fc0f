use candle_core::*;
use sconce_ops::*;
use std::time::Instant;
fn time(f: impl Fn()) -> f64 {
    f();
    let n = 9;
    let mut v: Vec<f64> = (0..n)
        .map(|_| {
            let t = Instant::now();
            f();
            t.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    v.sort_by(|a, b| a.total_cmp(b));
    v[n / 2]
}
fn main() {
    let d = &Device::Cpu;
    let filter = std::env::args().nth(1).unwrap_or_default();
    let cases: &[(&str, usize, usize, usize, usize, usize, usize, usize, usize)] = &[
        // name b c hw o k s p g
        ("3x3 64@56", 1, 64, 56, 64, 3, 1, 1, 1),
        ("3x3 64@56 b8", 8, 64, 56, 64, 3, 1, 1, 1),
        ("3x3 128@28", 1, 128, 28, 128, 3, 1, 1, 1),
        ("3x3 256@14", 1, 256, 14, 256, 3, 1, 1, 1),
        ("3x3 512@7", 1, 512, 7, 512, 3, 1, 1, 1),
        ("3x3 512@7 b8", 8, 512, 7, 512, 3, 1, 1, 1),
        ("stem 7x7/2", 1, 3, 224, 64, 7, 2, 3, 1),
        ("stem 7x7/2 b8", 8, 3, 224, 64, 7, 2, 3, 1),
        ("1x1 768@32", 1, 768, 32, 768, 1, 1, 0, 1),
        ("1x1 64-256@56 b8", 8, 64, 56, 256, 1, 1, 0, 1),
        ("1x1/2 512-1024@28 b8", 8, 512, 28, 1024, 1, 2, 0, 1),
        ("patch 16/16", 1, 3, 224, 768, 16, 16, 0, 1),
        ("patch 16/16 b8", 8, 3, 224, 768, 16, 16, 0, 1),
        ("dw 9x9 768@32", 1, 768, 32, 768, 9, 1, 4, 768),
        ("dw 3x3 64@56", 1, 64, 56, 64, 3, 1, 1, 64),
        ("dw 5x5 320@14", 1, 320, 14, 320, 5, 1, 2, 320),
        ("dw 3x3/2 64@112 b8", 8, 64, 112, 64, 3, 2, 1, 64),
        ("dw 7x7 96@56 b8", 8, 96, 56, 96, 7, 1, 3, 96),
        ("g32 3x3 128@56", 1, 128, 56, 128, 3, 1, 1, 32),
    ];
    for &(name, b, c, hw, o, k, s, p, g) in cases {
        if !name.contains(&filter) {
            continue;
        }
        let x = Tensor::randn(0f32, 1., (b, c, hw, hw), d).unwrap();
        let w = Tensor::randn(0f32, 1., (o, c / g, k, k), d).unwrap();
        let bias = Tensor::randn(0f32, 1., o, d).unwrap();
        let opt = ConvOptions::<2>::default().stride(s).padding(p).groups(g);
        let y = conv2d(&x, &w, Some(&bias), &opt).unwrap();
        let fl = 2. * (y.elem_count() * c / g * k * k) as f64 * 1e-6;
        let f = time(|| {
            conv2d(&x, &w, Some(&bias), &opt).unwrap();
        });
        let xv = Var::from_tensor(&x).unwrap();
        let wv = Var::from_tensor(&w).unwrap();
        let bv = Var::from_tensor(&bias).unwrap();
        let g_ = y.ones_like().unwrap();
        let tot = |x: &Tensor, w: &Tensor, bb: &Tensor| {
            time(|| {
                let y = conv2d(x, w, Some(bb), &opt).unwrap();
                let l = (y * &g_).unwrap().sum_all().unwrap();
                l.backward().unwrap();
            })
        };
        let overhead = time(|| {
            let y = conv2d(&x, &w, Some(&bv), &opt).unwrap();
            let l = (y * &g_).unwrap().sum_all().unwrap();
            l.backward().unwrap();
        });
        let dx = tot(&xv, &w, &bias) - overhead;
        let dw = tot(&x, &wv, &bias) - overhead;
        println!(
            "{name:22} fwd {f:8.3} ms {:7.1} GF/s | dx {dx:8.3} {:7.1} | dw {dw:8.3} {:7.1} | rest {:.3}",
            fl / f,
            fl / dx,
            fl / dw,
            overhead - f
        );
    }
}
