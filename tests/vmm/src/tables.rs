// SPDX-License-Identifier: Apache-2.0
//! What a processor in long mode needs in memory: page tables, segments, interrupt gates, the task state segment.
//!
//! Source: Intel SDM volume 3, chapters 3 to 7. The guest's addresses are its physical ones.

use anyhow::Result;

use crate::guest::abi::{GDT, HALT_HANDLER, IDT, IMAGE, KERNEL_STACK, LOCAL_APIC, PAGE_TABLES, PORTS, RAM, TSS};
use crate::ram::Ram;

/// Selector of code at privilege level 0.
pub(crate) const KERNEL_CODE: u16 = 0x08;
/// Selector of data at privilege level 3.
pub(crate) const USER_DATA: u16 = 0x1b;
/// Selector of code at privilege level 3.
pub(crate) const USER_CODE: u16 = 0x23;
/// Selector of the task state segment.
pub(crate) const TASK: u16 = 0x28;
/// Last byte of the global descriptor table.
pub(crate) const GDT_LIMIT: u16 = 0x37;
/// Last byte of the interrupt descriptor table.
pub(crate) const IDT_LIMIT: u16 = 16 * VECTORS as u16 - 1;
/// Last byte of the task state segment, its port bitmap included.
pub(crate) const TSS_LIMIT: u32 = PORT_BITMAP as u32 + PORTS as u32 / 8;
/// Physical address of the processor's interrupt controller.
pub(crate) const LOCAL_APIC_BASE: u64 = 0xfee0_0000;
/// Vector of interrupt line 0.
pub(crate) const FIRST_LINE: u8 = 32;

const LINES: u64 = 8;
const VECTORS: u64 = FIRST_LINE as u64 + LINES;
const BREAKPOINT: u64 = 3;
const PORT_BITMAP: u64 = 104;
const LARGE_PAGE: u64 = 2 << 20;
const UNCACHED: u64 = 0x10;
/// Present, writable, for privilege level 3, accessed.
const TABLE: u64 = 0x27;
/// As `TABLE`, and dirty, and large.
const PAGE: u64 = 0xe7;
const INTERRUPT_GATE: u64 = 0x8e;
const LEVEL_3: u64 = 0x60;

/// Writes all tables into guest memory.
pub(crate) fn write(ram: &Ram) -> Result<()> {
    page_tables(ram)?;
    segments(ram)?;
    gates(ram)?;
    task_state(ram)
}

/// Memory at its own addresses, and the interrupt controller.
fn page_tables(ram: &Ram) -> Result<()> {
    let [root, gibibytes, pages] = [0, 1, 2].map(|page| PAGE_TABLES + 0x1000 * page);
    let entry = |table: u64, at: u64, value: u64| ram.write(table + 8 * at, &value.to_le_bytes());
    entry(root, 0, gibibytes | TABLE)?;
    entry(gibibytes, 0, pages | TABLE)?;
    (0..RAM / LARGE_PAGE).try_for_each(|page| entry(pages, page, (page * LARGE_PAGE) | PAGE))?;
    entry(pages, LOCAL_APIC / LARGE_PAGE, LOCAL_APIC_BASE | PAGE | UNCACHED)
}

fn segments(ram: &Ram) -> Result<()> {
    let task = 0x0000_8b00_0000_0000 | (TSS & 0xff_ffff) << 16 | u64::from(TSS_LIMIT);
    // Null, code and data of level 0, data and code of level 3, the task in two halves.
    let table =
        [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff, task, 0];
    table
        .iter()
        .enumerate()
        .try_for_each(|(at, entry): (usize, &u64)| ram.write(GDT + 8 * at as u64, &entry.to_le_bytes()))
}

fn gates(ram: &Ram) -> Result<()> {
    for vector in 0..VECTORS {
        let (handler, level) = if vector == BREAKPOINT { (HALT_HANDLER, LEVEL_3) } else { (IMAGE + 16 * vector, 0) };
        let gate = handler & 0xffff
            | u64::from(KERNEL_CODE) << 16
            | (INTERRUPT_GATE | level) << 40
            | (handler >> 16 & 0xffff) << 48;
        ram.write(IDT + 16 * vector, &gate.to_le_bytes())?;
        ram.write(IDT + 16 * vector + 8, &(handler >> 32).to_le_bytes())?;
    }
    Ok(())
}

/// The stack of level 0, and all ports below `PORTS` open.
fn task_state(ram: &Ram) -> Result<()> {
    ram.write(TSS + 4, &KERNEL_STACK.to_le_bytes())?;
    ram.write(TSS + 102, &(PORT_BITMAP as u16).to_le_bytes())?;
    // The bitmap itself is zeros; a byte of ones ends it.
    ram.write(TSS + u64::from(TSS_LIMIT), &[0xff])
}
