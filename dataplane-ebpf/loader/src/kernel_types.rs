// SPDX-License-Identifier: Apache-2.0
//! Where this kernel's own structures have their fields, by the type information that it shows (BTF, kernel
//! `Documentation/bpf/btf.rst`). The file is walked, not parsed whole: of its 150,000 types a few are of interest.

use std::{borrow::Cow, fs, io};

use weft_abi::SkbLayout;

use crate::OffloadCheck;

/// The kernel's own types (`CONFIG_DEBUG_INFO_BTF`).
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const FUNCTION: u32 = 12;
/// The function that shows a program the kernel's own `struct sk_buff` (6.2).
const CAST: &str = "bpf_cast_to_kern_ctx";
/// How deep structures without a name nest.
const DEPTH: u32 = 4;

/// Why the programs cannot see what they should.
pub(crate) type Reason = String;

/// How the programs see `struct sk_buff`; the default: not at all.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct KernelSkb {
    pub(crate) layout: SkbLayout,
    /// Number among the kernel's types of the function that [`SkbLayout::CAST`] stands for.
    cast: Option<u32>,
}

impl KernelSkb {
    /// By copies, as before kernel 6.2.
    pub(crate) const fn copied(self) -> Self {
        Self { layout: SkbLayout { casts: 0, ..self.layout }, cast: None }
    }

    /// How checksums are checked by it.
    pub(crate) const fn check(&self) -> OffloadCheck {
        if self.layout.casts == 0 { OffloadCheck::Copied } else { OffloadCheck::Read }
    }

    /// An object with calls of the kernel's function where it has those that stand for it.
    pub(crate) fn link<'o>(&self, object: &'o [u8]) -> Cow<'o, [u8]> {
        let Some(function) = self.cast else { return Cow::Borrowed(object) };
        let [standing, called] = [(0, SkbLayout::CAST), (BPF_PSEUDO_KFUNC_CALL, function)].map(call);
        let mut object = object.to_vec();
        // Instructions are 8 bytes, and sections of them are aligned.
        for instruction in object.as_chunks_mut().0 {
            if *instruction == standing {
                *instruction = called;
            }
        }
        Cow::Owned(object)
    }
}

/// A call as an instruction (kernel `Documentation/bpf/standardization/instruction-set.rst`) of a little-endian machine: whose number it
/// is, and the number.
const fn call((whose, number): (u8, u32)) -> [u8; 8] {
    const BPF_JMP_CALL: u8 = 0x85;
    let [a, b, c, d] = number.to_le_bytes();
    [BPF_JMP_CALL, whose << 4, 0, 0, a, b, c, d]
}

/// A number of the kernel's types, in a call.
const BPF_PSEUDO_KFUNC_CALL: u8 = 2;

/// How this kernel's programs may see `struct sk_buff`.
///
/// # Errors
/// The kernel does not show its types, or they are not as expected.
pub(crate) fn skb() -> Result<KernelSkb, Reason> {
    let data = fs::read(VMLINUX).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!("{VMLINUX} is missing: this kernel was built without CONFIG_DEBUG_INFO_BTF"),
        _ => format!("read {VMLINUX}: {error}"),
    })?;
    let types =
        Types::of(&data).ok_or_else(|| format!("{VMLINUX} is not BTF of version 1 in this machine's byte order"))?;
    let layout = layout_of(&types)?;
    let cast = types.find(CAST, |kind, _| kind == FUNCTION);
    Ok(KernelSkb { layout: SkbLayout { casts: u8::from(cast.is_some()), ..layout }, cast })
}

fn layout_of(types: &Types<'_>) -> Result<SkbLayout, Reason> {
    let skb = types
        .find("sk_buff", |kind, fields| kind == STRUCT && fields != 0)
        .ok_or("the kernel's BTF has no struct sk_buff")?;
    let field = |name: &str| types.field(skb, name, DEPTH).ok_or_else(|| format!("struct sk_buff has no field {name}"));
    let byte = |name: &str| Ok::<_, Reason>(field(name)? / 8);
    let (summed, csum_start) = (field("ip_summed")?, byte("csum_start")?);
    if byte("csum_offset")? != csum_start + 2 {
        return Err("csum_offset does not follow csum_start in struct sk_buff".to_owned());
    }
    // Even, so that the halves are aligned on the program's stack as they are in the structure.
    let start = csum_start.min(summed / 8) & !1;
    let far = || format!("ip_summed and csum_start of struct sk_buff are not within {} bytes", SkbLayout::WINDOW);
    let within = |byte: u32, len: usize| {
        let offset = u8::try_from(byte - start).ok().filter(|offset| usize::from(*offset) + len <= SkbLayout::WINDOW);
        offset.ok_or_else(far)
    };
    Ok(SkbLayout {
        start: u16::try_from(start).map_err(|_| far())?,
        mac_header: u16::try_from(byte("mac_header")?).map_err(|_| far())?,
        summed: within(summed / 8, 1)?,
        // Of a little-endian machine, as all are that Weft is built for.
        summed_shift: u8::try_from(summed % 8).map_err(|_| far())?,
        csum_start: within(csum_start, 4)?,
        casts: 0,
    })
}

/// A BTF file.
struct Types<'a> {
    strings: &'a [u8],
    /// Where each type begins, by its number - 1.
    types: Vec<&'a [u8]>,
}

impl<'a> Types<'a> {
    fn of(data: &'a [u8]) -> Option<Self> {
        let half = |at: usize| Some(u16::from_ne_bytes(data.get(at..at + 2)?.try_into().ok()?));
        if half(0)? != MAGIC || *data.get(2)? != 1 {
            return None;
        }
        let header = word(data, 4)?;
        let section = |at: usize| data.get((header + word(data, at)?) as usize..)?.get(..word(data, at + 4)? as usize);
        let mut rest = section(8)?;
        let strings = section(16)?;
        let mut types = Vec::new();
        while !rest.is_empty() {
            types.push(rest);
            rest = rest.get(12 + extra(word(rest, 4)?)?..)?;
        }
        Some(Self { strings, types })
    }

    fn named(&self, offset: u32, name: &str) -> bool {
        let text = self.strings.get(offset as usize..).unwrap_or_default();
        text.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    }

    /// The number of the first type of this name whose kind and number of parts are right.
    fn find(&self, name: &str, is_right: impl Fn(u32, usize) -> bool) -> Option<u32> {
        let found = self.types.iter().position(|start| {
            let info = word(start, 4).unwrap_or(0);
            is_right(kind(info), vlen(info)) && word(start, 0).is_some_and(|offset| self.named(offset, name))
        })?;
        u32::try_from(found + 1).ok()
    }

    /// Bits from the start of structure or union `number` to its field, which may be in one without a name inside.
    fn field(&self, number: u32, name: &str, depth: u32) -> Option<u32> {
        let start = self.types.get(number.checked_sub(1)? as usize)?;
        let info = word(start, 4)?;
        if !matches!(kind(info), STRUCT | UNION) {
            return None;
        }
        // With the flag, the upper 8 bits are the width of a bit field.
        let mask = if info >> 31 == 1 { 0x00ff_ffff } else { u32::MAX };
        (0..vlen(info)).find_map(|index| {
            let at = 12 + index * 12;
            let offset = word(start, at + 8)? & mask;
            let label = word(start, at)?;
            if self.named(label, name) {
                return Some(offset);
            }
            let inner = self.named(label, "") && depth > 0;
            Some(offset + inner.then(|| self.field(word(start, at + 4)?, name, depth - 1)).flatten()?)
        })
    }
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(data.get(at..at + 4)?.try_into().ok()?))
}

const fn kind(info: u32) -> u32 {
    info >> 24 & 0x1f
}

const fn vlen(info: u32) -> usize {
    (info & 0xffff) as usize
}

/// Bytes that follow the 12 of every type; `None`: a kind that this does not know.
fn extra(info: u32) -> Option<usize> {
    Some(match kind(info) {
        // Pointer, forward declaration, typedef, volatile, const, restrict, function, float, type tag.
        2 | 7..=12 | 16 | 18 => 0,
        // Integer, variable, declaration tag.
        1 | 14 | 17 => 4,
        // Array.
        3 => 12,
        STRUCT | UNION => vlen(info) * 12,
        // Enumeration, parameters of a function.
        6 | 13 => vlen(info) * 8,
        // Data section, enumeration of 64 bits.
        15 | 19 => vlen(info) * 12,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct sk_buff { int; union { int csum; struct { u16 csum_start; u16 csum_offset }; u16 mac_header at 64 bits }; u8
    /// ip_summed:2 }` by hand, with a forward declaration of the same name before it.
    fn file() -> Vec<u8> {
        let names = ["", "sk_buff", "csum_start", "csum_offset", "mac_header", "ip_summed"];
        let mut strings = Vec::new();
        let mut offsets = Vec::new();
        for name in names {
            offsets.push(u32::try_from(strings.len()).unwrap());
            strings.extend(name.as_bytes());
            strings.push(0);
        }
        let name = |text: &str| offsets[names.iter().position(|name| *name == text).unwrap()];
        let words = [
            // 1: u16, 2: a declaration.
            vec![0, 1 << 24, 2, 16, name("sk_buff"), 7 << 24, 0],
            // 3: the inner pair, 4: the union.
            vec![0, STRUCT << 24 | 2, 4, name("csum_start"), 1, 0, name("csum_offset"), 1, 16],
            vec![0, UNION << 24 | 2, 10, 0, 3, 0, name("mac_header"), 1, 64],
            vec![name("sk_buff"), 1 << 31 | STRUCT << 24 | 2, 20, 0, 4, 256, name("ip_summed"), 1, 2 << 24 | 245],
        ]
        .concat();
        let types: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
        let lengths = [24, 0, types.len(), types.len(), strings.len()].map(|value| u32::try_from(value).unwrap());
        let mut file = [MAGIC.to_ne_bytes().as_slice(), &[1, 0]].concat();
        file.extend(lengths.iter().flat_map(|word| word.to_ne_bytes()));
        file.extend(types);
        file.extend(strings);
        file
    }

    #[test]
    fn fields_are_found_in_what_has_no_name() {
        let file = file();
        let layout = layout_of(&Types::of(&file).expect("BTF")).unwrap();
        let expected = SkbLayout { start: 30, mac_header: 40, summed: 0, summed_shift: 5, csum_start: 2, casts: 0 };
        assert_eq!(layout, expected);
    }

    #[test]
    fn what_is_cut_or_lacks_a_field_is_refused_with_its_name() {
        let mut file = file();
        for len in 0..file.len() - 40 {
            assert!(Types::of(&file[..len]).is_none_or(|types| layout_of(&types).is_err()), "{len} bytes");
        }
        let at = file.windows(10).position(|text| text == b"mac_header").unwrap();
        file[at] = b'x';
        let error = layout_of(&Types::of(&file).expect("BTF")).unwrap_err();
        assert!(error.contains("mac_header"), "{error}");
    }

    /// The tests' machines show their types.
    #[test]
    fn this_kernel_has_them_all() {
        let KernelSkb { layout, cast } = skb().unwrap();
        assert!(layout.start > 0 && layout.mac_header > layout.start, "{layout:?}");
        assert!(layout.casts != 0 && cast.is_some(), "{layout:?}");
    }

    #[test]
    fn calls_are_those_of_the_kernels_function_where_it_has_one() {
        let skb = KernelSkb { layout: SkbLayout { casts: 1, ..SkbLayout::default() }, cast: Some(0x0001_0203) };
        let [standing, helper, called] = [(0, SkbLayout::CAST), (0, 1), (BPF_PSEUDO_KFUNC_CALL, 0x0001_0203)].map(call);
        let object = [standing, helper, standing].concat();
        assert_eq!(*skb.link(&object), [called, helper, called].concat());
        assert_eq!(*skb.copied().link(&object), object);
        assert_eq!(called, [0x85, 0x20, 0, 0, 3, 2, 1, 0]);
    }
}
