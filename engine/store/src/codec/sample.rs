//! Telling early what cannot be compressed.

/// Bytes that are looked at.
const SAMPLE_BYTES: usize = 4096;
/// Bytes side by side in a sample.
const RUN_BYTES: usize = 16;

/// Whether the bytes are spread as evenly as noise is: compressed, encrypted and random data are. What repeats as a
/// whole may look so, too, so it is a hint.
///
/// Of N bytes drawn evenly of 256 the squares of the counts sum up to N * N / 256 + N on average; the sum grows quickly
/// when some are more frequent than others: of text it is ten times that.
pub(super) fn looks_random(bytes: &[u8]) -> bool {
    if bytes.len() < SAMPLE_BYTES {
        return false;
    }
    let step = bytes.len() / (SAMPLE_BYTES / RUN_BYTES);
    let mut counts = [0_u64; 256];
    for run in bytes.chunks_exact(step).take(SAMPLE_BYTES / RUN_BYTES) {
        for byte in &run[..RUN_BYTES] {
            counts[usize::from(*byte)] += 1;
        }
    }
    let squares: u64 = counts.iter().map(|count| count * count).sum();
    let even = (SAMPLE_BYTES * SAMPLE_BYTES / 256 + SAMPLE_BYTES) as u64;
    squares < even + even / 8
}

#[cfg(test)]
mod tests {
    use engine_base::random::Random;

    use super::*;

    #[test]
    fn noise_is_told_from_what_is_not() {
        let mut random = Random::new(7);
        for len in [8192, 16_384, 131_072] {
            let mut noise = vec![0; len];
            for _ in 0..50 {
                random.fill(&mut noise);
                assert!(looks_random(&noise));
            }
            let base64: Vec<u8> = noise.iter().map(|byte| b'0' + byte % 64).collect();
            assert!(!looks_random(&base64));
            let half: Vec<u8> = noise.iter().map(|byte| byte & 0x7f).collect();
            assert!(!looks_random(&half));
            let mut mixed = noise.clone();
            mixed[..len / 4].fill(0);
            assert!(!looks_random(&mixed));
            assert!(!looks_random(&vec![0; len]));
        }
        assert!(!looks_random(&[1; 16]));
    }
}
