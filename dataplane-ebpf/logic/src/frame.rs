// SPDX-License-Identifier: Apache-2.0
//! A packet's bytes.

/// An Ethernet frame that can be read at an offset.
pub trait Frame {
    /// Bytes of the frame.
    fn len(&self) -> u32;

    /// Whether the frame has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads a `T` at a constant offset of the linear part, or `None` where the linear part ends before.
    ///
    /// `T` must be valid for every bit pattern.
    fn read<T: Copy>(&self, offset: usize) -> Option<T>;

    /// Reads a `T` anywhere in the frame; slower.
    ///
    /// `T` must be valid for every bit pattern.
    fn load<T: Copy>(&self, offset: usize) -> Option<T>;
}
