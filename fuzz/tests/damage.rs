//! Valid encodings, damaged in every way that is easily listed: each cut, each bit changed, and at each place lengths that
//! nothing stands behind. That most are refused is tested beside the decoders; here, that none costs a panic or much
//! memory.

use consensus_fuzz::{TARGETS, Target};

/// As Thrift, bincode and the snapshot stream write lengths.
const LENGTHS: &[&[u8]] = &[
    &[0x7f, 0xff, 0xff, 0xff],
    &[0x00, 0xff, 0xff, 0xff],
    &[0xff; 8],
    &[252, 255, 255, 255, 15],
    &[253, 255, 255, 255, 255, 255, 255, 255, 127],
];
/// Longer seeds are damaged at so many places.
const PLACES: usize = 200;

fn damage(target: &Target, seed: &[u8]) -> usize {
    let mut runs = 0;
    let mut run = |bytes: &[u8]| {
        runs += 1;
        (target.run)(bytes);
    };
    for at in (0..seed.len()).step_by(seed.len().div_ceil(PLACES).max(1)) {
        run(&seed[..at]);
        for bit in 0..8 {
            let mut changed = seed.to_vec();
            changed[at] ^= 1 << bit;
            run(&changed);
        }
        for length in LENGTHS {
            // In the place of as many bytes, and of one.
            run(&[&seed[..at], length, seed.get(at + length.len()..).unwrap_or_default()].concat());
            run(&[&seed[..at], length, &seed[at + 1..]].concat());
        }
    }
    runs
}

// One test, as other threads' memory would be counted too.
#[test]
fn no_damage_costs_a_panic_or_much_memory() {
    for target in TARGETS {
        let runs: usize = (target.seeds)().iter().map(|seed| damage(target, seed)).sum();
        println!("{}: {runs} encodings", target.name);
        assert!(runs > 100, "{}: {runs}", target.name);
    }
}
