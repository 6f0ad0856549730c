// SPDX-License-Identifier: Apache-2.0
//! The virtual machine: memory, interrupt routes, event descriptors on ports and interrupt lines.

use std::sync::Arc;

use anyhow::{Context, Result};
use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_msi, kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, Kvm, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::guest::abi::{IMAGE, IMAGE_SPACE, KICK_PORT, RAM, RX_LINE, TX_LINE, WAKE_LINE};
use crate::ram::Ram;
use crate::tables::{self, FIRST_LINE, LOCAL_APIC_BASE};
use crate::vcpu::Vcpu;

/// The guest's program; `build.rs` makes it.
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.bin"));

/// A virtual machine without a processor.
#[derive(Debug)]
pub(crate) struct Vm {
    kvm: Kvm,
    vm: VmFd,
    ram: Arc<Ram>,
}

impl Vm {
    /// A machine with the guest's program and tables in its memory.
    pub(crate) fn new(ram: Arc<Ram>) -> Result<Self> {
        let kvm = Kvm::new().context("opening /dev/kvm; these tests and benches need KVM and the right to use it")?;
        let vm = kvm.create_vm().context("KVM_CREATE_VM on /dev/kvm")?;
        vm.create_irq_chip().context("KVM_CREATE_IRQCHIP")?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: RAM,
            userspace_addr: ram.address(),
        };
        // SAFETY: the memory is mapped as long as `ram` lives, which this value keeps.
        unsafe { vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")?;
        const { assert!(PROGRAM.len() as u64 <= IMAGE_SPACE) };
        ram.write(IMAGE, PROGRAM)?;
        tables::write(&ram)?;
        let machine = Self { kvm, vm, ram };
        machine.route_interrupts()?;
        Ok(machine)
    }

    /// Makes interrupt lines messages to the processor, as MSI-X does it. KVM delivers these from within the write to
    /// an irqfd; the lines of the older controllers pass a work queue.
    fn route_interrupts(&self) -> Result<()> {
        let message = |line: u32| kvm_irq_routing_entry {
            gsi: line,
            type_: KVM_IRQ_ROUTING_MSI,
            u: kvm_irq_routing_entry__bindgen_ty_1 {
                msi: kvm_irq_routing_msi {
                    address_lo: LOCAL_APIC_BASE as u32,
                    data: u32::from(FIRST_LINE) + line,
                    ..Default::default()
                },
            },
            ..Default::default()
        };
        let lines = [RX_LINE, TX_LINE, WAKE_LINE].map(message);
        let routing = KvmIrqRouting::from_entries(&lines).context("interrupt routes")?;
        self.vm.set_gsi_routing(&routing).context("KVM_SET_GSI_ROUTING")
    }

    /// Has the guest's kicks of ring `index` counted in this descriptor, without an exit to the monitor.
    pub(crate) fn kick(&self, index: usize, event: &EventFd) -> Result<()> {
        let port = u64::from(KICK_PORT) + 2 * index as u64;
        self.vm.register_ioevent(event, &IoEventAddress::Pio(port), NoDatamatch).context("KVM_IOEVENTFD")
    }

    /// Has this descriptor interrupt the guest on this line, without the monitor.
    pub(crate) fn interrupt(&self, line: u32, event: &EventFd) -> Result<()> {
        self.vm.register_irqfd(event, line).context("KVM_IRQFD")
    }

    /// The machine's processor.
    pub(crate) fn processor(&self) -> Result<Vcpu> {
        Vcpu::new(&self.kvm, &self.vm, Arc::clone(&self.ram))
    }
}
