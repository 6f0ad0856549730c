// SPDX-License-Identifier: Apache-2.0
//! The processor: long mode at privilege level 3 from the first instruction on, one job at a time.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use crate::guest::abi::{DONE_PORT, ENTRY, EXCEPTION_PORT, FAIL_PORT, GDT, IDT, PAGE_TABLES, STACK, TSS};
use crate::ram::Ram;
use crate::tables::{GDT_LIMIT, IDT_LIMIT, TASK, TSS_LIMIT, USER_CODE, USER_DATA};

/// Protected mode, paging, a coprocessor, its errors as exceptions, write protection.
const CR0: u64 = 0x8001_0033;
/// Physical address extension, SSE with its exceptions.
const CR4: u64 = 0x620;
/// Long mode enabled and active.
const EFER: u64 = 0x500;
/// The bit that is always set, and interrupts allowed.
const FLAGS: u64 = 0x202;

/// Register of the local APIC (Intel SDM volume 3, 12.9): vector 255, and the bit that switches the controller on.
const SPURIOUS_VECTOR: usize = 0xf0;

/// A processor in KVM.
#[derive(Debug)]
pub(crate) struct Vcpu {
    vcpu: VcpuFd,
    ram: Arc<Ram>,
}

impl Vcpu {
    pub(crate) fn new(kvm: &Kvm, vm: &VmFd, ram: Arc<Ram>) -> Result<Self> {
        let vcpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("KVM_GET_SUPPORTED_CPUID")?;
        vcpu.set_cpuid2(&cpuid).context("KVM_SET_CPUID2")?;
        let mut system = vcpu.get_sregs().context("KVM_GET_SREGS")?;
        enter_long_mode(&mut system);
        vcpu.set_sregs(&system).context("KVM_SET_SREGS")?;
        let mut controller = vcpu.get_lapic().context("KVM_GET_LAPIC")?;
        controller.regs[SPURIOUS_VECTOR..SPURIOUS_VECTOR + 2].copy_from_slice(&[-1, 1]);
        vcpu.set_lapic(&controller).context("KVM_SET_LAPIC")?;
        Ok(Self { vcpu, ram })
    }

    /// Runs the job in the control page to its end.
    pub(crate) fn run(&mut self) -> Result<()> {
        let registers = kvm_regs { rip: ENTRY, rsp: STACK, rflags: FLAGS, ..Default::default() };
        self.vcpu.set_regs(&registers).context("KVM_SET_REGS")?;
        loop {
            let exit = match self.vcpu.run() {
                Ok(exit) => exit,
                Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => continue,
                Err(error) => return Err(error).context("KVM_RUN"),
            };
            match exit {
                VcpuExit::IoOut(DONE_PORT, _) => return Ok(()),
                VcpuExit::IoOut(FAIL_PORT, data) => bail!("the guest's driver gave up: cause {data:?}"),
                VcpuExit::IoOut(EXCEPTION_PORT, data) => {
                    let vector = data.first().copied();
                    return self.exception(vector);
                }
                other => {
                    let what = format!("{other:?}");
                    bail!("the guest left KVM with {what}, at {:x?}", self.vcpu.get_regs().context("KVM_GET_REGS")?);
                }
            }
        }
    }

    /// Says what went wrong in the guest, from what the processor left on the stack of level 0.
    fn exception(&self, vector: Option<u8>) -> Result<()> {
        let stack = self.vcpu.get_regs().context("KVM_GET_REGS")?.rsp;
        let word = |at: u64| self.ram.memory().read::<u64>(stack + 8 * at);
        bail!(
            "exception {vector:?} in the guest; on its stack, an error code for some: {:#x} {:#x} {:#x} {:#x}",
            word(0),
            word(1),
            word(2),
            word(3)
        )
    }
}

fn enter_long_mode(system: &mut kvm_sregs) {
    let user = |selector: u16, type_: u8, long: bool| kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 3,
        s: 1,
        l: u8::from(long),
        db: u8::from(!long),
        g: 1,
        ..Default::default()
    };
    system.cs = user(USER_CODE, 11, true);
    for segment in [&mut system.ds, &mut system.es, &mut system.fs, &mut system.gs, &mut system.ss] {
        *segment = user(USER_DATA, 3, false);
    }
    system.tr =
        kvm_segment { base: TSS, limit: TSS_LIMIT, selector: TASK, type_: 11, present: 1, ..Default::default() };
    system.gdt = kvm_dtable { base: GDT, limit: GDT_LIMIT, ..Default::default() };
    system.idt = kvm_dtable { base: IDT, limit: IDT_LIMIT, ..Default::default() };
    (system.cr0, system.cr3, system.cr4, system.efer) = (CR0, PAGE_TABLES, CR4, EFER);
}
