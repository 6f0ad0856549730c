# SPDX-License-Identifier: Apache-2.0
# What runs at privilege level 0: the handlers of exceptions and interrupts. Every instruction here is emulated by some
# hosts and costs most of a microsecond there, so there are as few as possible. Sixteen bytes each: the number of the
# vector is the place of its handler.
#
# Addresses are those of guest::abi: counters of interrupts at CONTROL, `stop` behind them, the
# register for the end of an interrupt in LOCAL_APIC.

.section .vectors, "ax"
.set number, 0
.rept 32                        # exceptions: the VMM ends the guest
    .balign 16
    mov eax, number
    out 0xf4, al
    hlt
    .set number, number + 1
.endr
.set number, 0
.rept 8                         # interrupts: count, and tell the controller that it is over; any value does
    .balign 16
    inc dword ptr [0x40000 + 4 * number]
    mov dword ptr [0x40000b0], eax
    iretq
    .set number, number + 1
.endr
.org 0x300
halt:                           # int3: sleeps unless an interrupt came since the driver read the counters into rdi
    cmp rdi, qword ptr [0x40000 + 4 * 4]
    jne 1f
    cmp dword ptr [0x40000 + 4 * 8], 0
    jne 1f
    sti                         # takes effect behind the next instruction: nothing comes between
    hlt
1:  iretq
.org 0x400
entry:                          # of every job, with an empty stack
    call guest_main
    ud2
.text
