//! Distances without any instruction beyond the platform's baseline.

use super::{Hit, Lanes, Scan};

pub(super) fn scan(scan: Scan, hits: &mut Vec<Hit>) {
    for (first, block) in (scan.first..).step_by(Lanes::WIDTH).zip(scan.memory.chunks_exact(scan.query.len())) {
        let mut distances = [0; Lanes::WIDTH];
        for (lanes, &q) in block.iter().zip(scan.query) {
            for (distance, x) in distances.iter_mut().zip(lanes.0) {
                *distance += (x ^ q).count_ones();
            }
        }
        let near = (first..).zip(distances).filter(|(_, distance)| *distance < scan.limit);
        hits.extend(near.map(|(index, distance)| Hit { index, distance }));
    }
}

#[inline(always)]
pub(super) fn distances_at(query: &[u64], codes: &[u64], places: &[u32], out: &mut Vec<u32>) {
    let words = query.len();
    out.extend(places.iter().map(|&place| {
        let code = &codes[place as usize * words..][..words];
        code.iter().zip(query).map(|(x, q)| (x ^ q).count_ones()).sum::<u32>()
    }));
}
