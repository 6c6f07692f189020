//! What waits to be sent: headers in an arena, data as slices, gathered into one send per turn.

use engine_memory::Slice;
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::io::IoSlice;

/// Most parts of one gathered send. The kernel's limit (IOV_MAX) is 1024.
pub(crate) const PARTS_MAX: usize = 256;
/// Sent bytes at the arena's front that are worth moving the rest for.
const ARENA_COMPACT_LEN: usize = 64 << 10;

enum Segment {
    /// `len` bytes of the arena, from `start` (counted over the connection's life).
    Arena {
        start: u64,
        len: usize,
    },
    Data(Slice),
}

impl Segment {
    fn len(&self) -> usize {
        match self {
            Self::Arena { len, .. } => *len,
            Self::Data(slice) => slice.len(),
        }
    }
}

/// The send side of a connection. Bounded because every command slot has at most one answer in it.
#[derive(Default)]
pub(crate) struct Transmitter {
    arena: Vec<u8>,
    /// Position of the arena's first byte.
    arena_base: u64,
    segments: VecDeque<Segment>,
    /// Bytes of the first segment that were sent.
    head_sent: usize,
    queued: u64,
    sent: u64,
    /// Slots to free once the stream position is sent.
    marks: VecDeque<(u64, u16)>,
}

impl Transmitter {
    pub(crate) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Queues bytes of a header, digest or padding.
    pub(crate) fn push_bytes(&mut self, bytes: &[u8]) {
        let start = self.arena_base + self.arena.len() as u64;
        self.arena.extend_from_slice(bytes);
        self.queued += bytes.len() as u64;
        match self.segments.back_mut() {
            Some(Segment::Arena { len, .. }) => *len += bytes.len(),
            _ => self.segments.push_back(Segment::Arena { start, len: bytes.len() }),
        }
    }

    /// Queues data.
    pub(crate) fn push_data(&mut self, slice: Slice) {
        if !slice.is_empty() {
            self.queued += slice.len() as u64;
            self.segments.push_back(Segment::Data(slice));
        }
    }

    /// Frees `slot` when all that is queued now was sent.
    pub(crate) fn mark(&mut self, slot: u16) {
        self.marks.push_back((self.queued, slot));
    }

    /// The next parts to send, in order.
    pub(crate) fn gather(&self) -> SmallVec<[IoSlice<'_>; 64]> {
        let mut skip = self.head_sent;
        let mut parts = SmallVec::new();
        for segment in self.segments.iter().take(PARTS_MAX) {
            let bytes = match segment {
                Segment::Arena { start, len } => {
                    let start = (start - self.arena_base) as usize;
                    &self.arena[start..start + len]
                }
                Segment::Data(slice) => slice,
            };
            parts.push(IoSlice::new(&bytes[skip..]));
            skip = 0;
        }
        parts
    }

    /// Notes that `len` bytes were sent; calls `free` with the slots whose answers are out.
    pub(crate) fn advance(&mut self, len: usize, mut free: impl FnMut(u16)) {
        self.sent += len as u64;
        assert!(self.sent <= self.queued, "no more is sent than was queued");
        let mut left = self.head_sent + len;
        while let Some(first) = self.segments.front() {
            if left < first.len() {
                break;
            }
            left -= first.len();
            self.segments.pop_front();
        }
        self.head_sent = left;
        while let Some(&(position, slot)) = self.marks.front() {
            if position > self.sent {
                break;
            }
            self.marks.pop_front();
            free(slot);
        }
        self.compact();
    }

    fn compact(&mut self) {
        let first = self.segments.iter().find_map(|segment| match segment {
            Segment::Arena { start, .. } => Some(*start),
            Segment::Data(_) => None,
        });
        match first {
            None => {
                self.arena_base += self.arena.len() as u64;
                self.arena.clear();
            }
            Some(first) => {
                let done = (first - self.arena_base) as usize;
                if done >= ARENA_COMPACT_LEN {
                    self.arena.drain(..done);
                    self.arena_base = first;
                }
            }
        }
    }

    /// Forgets everything; returns the slots whose answers were not out.
    pub(crate) fn clear(&mut self) -> Vec<u16> {
        let slots = self.marks.drain(..).map(|(_, slot)| slot).collect();
        *self = Self::default();
        slots
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_memory::Buffer;

    #[test]
    fn parts_come_out_in_order_and_slots_are_freed_when_their_bytes_are_out() {
        let mut transmitter = Transmitter::default();
        let mut expected = Vec::new();
        for slot in 0..50_u16 {
            transmitter.push_bytes(&[slot as u8; 24]);
            transmitter.push_bytes(&[0xee; 4]);
            expected.extend_from_slice(&[slot as u8; 24]);
            expected.extend_from_slice(&[0xee; 4]);
            if slot % 3 == 0 {
                let data = vec![slot as u8 ^ 0xff; 1000];
                transmitter.push_data(Buffer::try_copy_of(&data).unwrap().freeze());
                expected.extend_from_slice(&data);
            }
            transmitter.mark(slot);
        }
        let mut sent = Vec::new();
        let mut freed = Vec::new();
        let mut step = 1;
        while !transmitter.is_empty() {
            let all: Vec<u8> = transmitter.gather().iter().flat_map(|part| part.to_vec()).collect();
            let len = all.len().min(step);
            sent.extend_from_slice(&all[..len]);
            transmitter.advance(len, |slot| freed.push(slot));
            step = step * 3 % 1009 + 1;
        }
        assert_eq!(sent, expected);
        assert_eq!(freed, (0..50).collect::<Vec<_>>());
    }
}
