//! What the packed layouts share: masks that say which elements are stored, and where the values of a block start.

use bytemuck::Pod;

use crate::shape::Geometry;

/// The mask of a line, one bit an element.
pub(crate) trait Mask: Pod + Into<u64> + Sync {
    /// Set bits.
    fn ones(self) -> usize;
}

impl Mask for u32 {
    fn ones(self) -> usize {
        self.count_ones() as usize
    }
}

impl Mask for u64 {
    fn ones(self) -> usize {
        self.count_ones() as usize
    }
}

/// Writes where every block starts and returns the number of values of each strip, whose values start at multiples
/// of `align` elements.
pub(crate) fn write_offsets<M: Mask>(
    masks: &[M],
    shape: &Geometry,
    align: usize,
    offsets: &mut [u64],
) -> Vec<usize> {
    let mut next = 0usize;
    let mut offsets = offsets.iter_mut();
    masks
        .chunks_exact(shape.lines_per_strip)
        .map(|strip| {
            let start = next;
            for (block, offset) in strip.chunks(shape.lines_per_block).zip(&mut offsets) {
                *offset = next as u64;
                next += block.iter().map(|m| m.ones()).sum::<usize>();
            }
            let count = next - start;
            next = start + count.next_multiple_of(align);
            count
        })
        .collect()
}

/// The part of `values` that belongs to each strip, without its padding. `lengths`: used and padded, a strip.
pub(crate) fn split_strips<T>(
    mut values: &mut [T],
    lengths: impl Iterator<Item = (usize, usize)>,
) -> Vec<&mut [T]> {
    lengths
        .map(|(used, padded)| {
            let (strip, rest) = std::mem::take(&mut values).split_at_mut(padded);
            values = rest;
            &mut strip[..used]
        })
        .collect()
}
