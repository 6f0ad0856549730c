// SPDX-License-Identifier: Apache-2.0
//! ADD: validate, allocate, make the link, attach, configure the sandbox, answer (CNI spec 1.1.0, "ADD").
//!
//! The plugin makes a link that is down, and it stays so until the agent has attached programs and written policy: the agent
//! brings the host's end up, and nothing is sent past them. The sandbox's end follows, and the answer comes when both run.

use std::{
    io::Write,
    thread,
    time::{Duration, Instant},
};

use weft_api::{Allocation, Answer, AttachmentSpec, Client, ClientError, PortKind, PortLink, Request};

use super::{
    alias,
    journal::{Journal, Step},
};
use crate::{
    agent::{self, PATIENCE},
    config::{MTU_RANGE, NetworkConfig},
    device_info::{self, DeviceInfo},
    environment::{Environment, check_ifname},
    error::{CniError, Code},
    netlink::{Link, Netlink, VethPair},
    record::{Folder, Record},
    request,
    result::{Address, CniResult, Dns, Interface, ResultRoute},
    sandbox::Sandbox,
    sandbox_plan::{MAIN_TABLE, SandboxPlan, plan},
    sysctl,
    tap::{self, Tap},
};

/// `RT_SCOPE_LINK` of rtnetlink(7).
const SCOPE_LINK: u8 = 253;
/// How long a link may take from up to running. The kernel's link watch works once a second; newer kernels (6.6.8, 6.8) do its
/// work for who asks.
const CARRIER_PATIENCE: Duration = Duration::from_secs(5);
const CARRIER_INTERVAL: Duration = Duration::from_millis(2);

/// Makes the attachment and writes its result.
pub(super) fn run(environment: &Environment, config: &NetworkConfig, output: &mut dyn Write) -> Result<(), CniError> {
    let spec = request::spec(environment, config)?;
    let previous = config.prev_result.as_ref().map(CniResult::parse).transpose()?;
    let mut host = Netlink::open().map_err(|error| CniError::io("cannot open a netlink socket", error))?;
    let mut sandbox = open_sandbox(&spec)?;
    refuse_taken(&spec, config, &mut host, sandbox.as_mut())?;
    let mut client = agent::connect(config, PATIENCE).map_err(|error| CniError::from_agent(&error, false))?;
    agent::settle_pending(config, &mut client, &spec.id)?;

    let mut add =
        Add { spec: &spec, config, host: &mut host, sandbox: sandbox.as_mut(), client, journal: Journal::default() };
    let answered = add.apply().and_then(|result| {
        let result = previous.map(|previous| result.clone().after(previous)).unwrap_or(result);
        print(&result, config, output)
    });
    answered.map_err(|error| {
        let Add { journal, host, sandbox, .. } = add;
        journal.undo(error, config, &spec.id, host, sandbox)
    })
}

/// The sandbox of a veth; a tap has none, whatever the runtime calls its namespace.
fn open_sandbox(spec: &AttachmentSpec) -> Result<Option<Sandbox>, CniError> {
    match spec.port {
        PortKind::Veth => Ok(Some(Sandbox::open(&spec.netns)?)),
        PortKind::Tap | PortKind::VhostUser => Ok(None),
    }
}

/// Refuses an ADD for what is there already, before anything is made.
fn refuse_taken(
    spec: &AttachmentSpec,
    config: &NetworkConfig,
    host: &mut Netlink,
    sandbox: Option<&mut Sandbox>,
) -> Result<(), CniError> {
    let ifname = &spec.id.ifname;
    if let Some(sandbox) = sandbox
        && sandbox.netlink.link(ifname)?.is_some()
    {
        return Err(CniError::environment(format!(
            "CNI_IFNAME '{ifname}': an interface of that name is in the sandbox {} already; \
             choose another name, or run DEL first",
            spec.netns
        )));
    }
    let record: Option<Record> = Folder::of_records(&config.state_dir).load(&spec.id);
    if let Some(file) = &config.device_info_file {
        device_info::refuse_foreign(file, record.as_ref().and_then(|record| record.device_info.as_ref()))?;
    }
    if let Some(Record { host_ifname, .. }) = record
        && host.link(&host_ifname)?.is_some()
    {
        return Err(CniError::environment(format!(
            "the attachment {} is there already, with the interface '{host_ifname}' on the host; run DEL first",
            spec.id
        )));
    }
    Ok(())
}

/// An ADD under way.
struct Add<'a> {
    spec: &'a AttachmentSpec,
    config: &'a NetworkConfig,
    host: &'a mut Netlink,
    sandbox: Option<&'a mut Sandbox>,
    client: Client,
    journal: Journal,
}

impl Add<'_> {
    fn apply(&mut self) -> Result<CniResult, CniError> {
        let allocation = self.allocate()?;
        self.record(&allocation)?;
        let link = self.make_link(&allocation)?;
        self.attach(&link)?;
        self.describe(&allocation)?;
        let plan = self.configure_sandbox(&allocation, &link)?;
        Ok(self.result(&allocation, &link, plan.as_ref()))
    }

    fn allocate(&mut self) -> Result<Allocation, CniError> {
        let asked = agent::allocate(&mut self.client, self.spec);
        // A refusal allocated nothing; a lost answer may have.
        if !matches!(asked, Err(ClientError::Refused(_))) {
            self.journal.push(Step::Allocated);
        }
        let addressed = !self.spec.addresses.is_empty();
        let allocation = match asked.map_err(|error| CniError::from_agent(&error, addressed))? {
            Answer::Allocation(allocation) => allocation,
            other => return Err(agent::unexpected("allocate", &other)),
        };
        check_allocation(&allocation, self.spec)?;
        Ok(allocation)
    }

    fn record(&mut self, allocation: &Allocation) -> Result<(), CniError> {
        let record = Record {
            id: self.spec.id.clone(),
            port: self.spec.port,
            netns: self.spec.netns.clone(),
            host_ifname: allocation.host_ifname.clone(),
            device_info: self.device_info(allocation),
        };
        let saved = Folder::of_records(&self.config.state_dir).save(&record.id, &record);
        saved.map_err(|error| CniError::new(Code::Io, error.to_string()))?;
        self.journal.push(Step::Recorded);
        Ok(())
    }

    fn make_link(&mut self, allocation: &Allocation) -> Result<Link, CniError> {
        let name = &allocation.host_ifname;
        if self.host.link(name)?.is_some() {
            return Err(CniError::environment(format!(
                "the interface '{name}' that the agent chose is on the host already; remove it with 'ip link del {name}'"
            )));
        }
        match self.sandbox.as_deref_mut() {
            Some(sandbox) => self.host.add_veth(&VethPair {
                host: name,
                host_mac: allocation.gateway_mac,
                sandbox: &self.spec.id.ifname,
                sandbox_mac: allocation.mac,
                netns: std::os::fd::AsFd::as_fd(sandbox),
                mtu: allocation.mtu,
            })?,
            None => self.make_tap(name)?,
        }
        self.journal.push(Step::Linked(name.clone()));
        let link = self.host.link(name)?.ok_or_else(|| {
            CniError::new(Code::Io, format!("the interface '{name}' vanished right after it was made"))
        })?;
        if self.spec.port != PortKind::Veth {
            self.host.set_ether(&link, allocation.gateway_mac, allocation.mtu)?;
        }
        self.host.set_alias(&link, &alias(&self.spec.id))?;
        sysctl::set_host_end(name).map_err(|error| CniError::new(Code::Io, error.to_string()))?;
        Ok(link)
    }

    fn make_tap(&self, name: &str) -> Result<(), CniError> {
        let owner = self.config.owner.unwrap_or(0);
        let tap = Tap { name, queues: self.spec.queues, owner, group: self.config.group };
        tap::create(&tap).map_err(|error| CniError::io(format!("cannot make the tap '{name}'"), error))
    }

    fn attach(&mut self, link: &Link) -> Result<(), CniError> {
        let link = PortLink { ifindex: link.index, ifname: link.name.clone() };
        agent::done(&mut self.client, &Request::Attach { id: self.spec.id.clone(), link })
    }

    /// The device-info file, where the runtime asks for one.
    fn device_info(&self, allocation: &Allocation) -> Option<DeviceInfo> {
        let (file, socket) = (self.config.device_info_file.clone()?, allocation.socket_path.clone()?);
        Some(DeviceInfo { file, socket })
    }

    /// Only once the socket is there: who reads the file may connect.
    fn describe(&mut self, allocation: &Allocation) -> Result<(), CniError> {
        let Some(info) = self.device_info(allocation) else { return Ok(()) };
        info.write()?;
        self.journal.push(Step::Described(info));
        Ok(())
    }

    fn configure_sandbox(&mut self, allocation: &Allocation, host: &Link) -> Result<Option<SandboxPlan>, CniError> {
        let Some(sandbox) = self.sandbox.as_deref_mut() else { return Ok(None) };
        let ifname = &self.spec.id.ifname;
        let link = sandbox.netlink.link(ifname)?.ok_or_else(|| {
            CniError::new(Code::Io, format!("the interface '{ifname}' vanished from the sandbox {}", self.spec.netns))
        })?;
        let plan = plan(allocation, link.index, &sandbox.netlink.routes()?);
        sandbox.run(|| sysctl::set_sandbox_end(ifname))?;
        sandbox.netlink.set_up(&link)?;
        await_running(self.host, &host.name, "on the host")?;
        await_running(&mut sandbox.netlink, ifname, "in the sandbox")?;
        for address in &plan.addresses {
            sandbox.netlink.add_address(&link, *address)?;
        }
        for route in &plan.routes {
            sandbox.netlink.add_route(route)?;
        }
        for rule in &plan.rules {
            sandbox.netlink.add_rule(*rule)?;
            self.journal.push(Step::Ruled(*rule));
        }
        Ok(Some(plan))
    }

    /// Interface 0 is the host's, interface 1 the workload's: in the sandbox, or the NIC of a guest.
    fn result(&self, allocation: &Allocation, link: &Link, plan: Option<&SandboxPlan>) -> CniResult {
        let id = &self.spec.id;
        let host = Interface {
            name: link.name.clone(),
            mac: Some(allocation.gateway_mac.to_string()),
            mtu: Some(allocation.mtu),
            ..Interface::default()
        };
        // Without a namespace the sandbox is the virtual machine, named by the container id.
        let sandbox = if self.spec.netns.is_empty() { &id.container_id } else { &self.spec.netns };
        let workload = Interface {
            name: id.ifname.clone(),
            mac: Some(allocation.mac.to_string()),
            mtu: Some(allocation.mtu),
            sandbox: Some(sandbox.clone()),
            socket_path: allocation.socket_path.clone(),
            ..Interface::default()
        };
        let ips = allocation.addresses.iter().map(|assigned| Address {
            address: assigned.address,
            gateway: Some(assigned.gateway),
            interface: Some(1),
        });
        CniResult {
            interfaces: vec![host, workload],
            ips: ips.collect(),
            routes: routes(allocation, plan),
            dns: self.config.dns.clone().unwrap_or_else(|| dns(allocation)),
        }
    }
}

/// Waits until the kernel sends by the interface: until its link watch has seen the carrier, the queue takes every packet and
/// sends none. Without it the answer to a workload's first ARP request is lost, and its first packet waits a second.
fn await_running(netlink: &mut Netlink, name: &str, place: &str) -> Result<(), CniError> {
    let deadline = Instant::now() + CARRIER_PATIENCE;
    loop {
        let state = match netlink.link(name)? {
            Some(link) if link.running => return Ok(()),
            Some(link) if link.up => "is up and has no carrier",
            Some(_) => "is down",
            None => "is gone",
        };
        if Instant::now() >= deadline {
            return Err(CniError::new(
                Code::Io,
                format!(
                    "the interface '{name}' {place} {state} {} s after the agent attached it; look for what else sets it (ip \
                     monitor link)",
                    CARRIER_PATIENCE.as_secs()
                ),
            ));
        }
        thread::sleep(CARRIER_INTERVAL);
    }
}

fn routes(allocation: &Allocation, plan: Option<&SandboxPlan>) -> Vec<ResultRoute> {
    let planned = plan.map(|plan| plan.routes.as_slice()).unwrap_or_default();
    let routes = allocation.routes.iter().enumerate().map(|(position, route)| ResultRoute {
        dst: route.dst,
        gw: route.gateway,
        mtu: None,
        advmss: None,
        priority: None,
        table: planned.get(position).map(|route| route.table).filter(|table| *table != MAIN_TABLE),
        scope: route.gateway.is_none().then_some(SCOPE_LINK),
    });
    routes.collect()
}

fn dns(allocation: &Allocation) -> Dns {
    Dns {
        nameservers: allocation.dns.nameservers.iter().map(ToString::to_string).collect(),
        search: allocation.dns.search.clone(),
        ..Dns::default()
    }
}

/// An allocation that breaks the contract is refused as a whole.
fn check_allocation(allocation: &Allocation, spec: &AttachmentSpec) -> Result<(), CniError> {
    let broken = |what: String| Err(CniError::new(Code::Protocol, format!("the weft agent's allocation {what}")));
    if let Err(why) = check_ifname(&allocation.host_ifname) {
        return broken(format!("has host_ifname '{}', which {why}", allocation.host_ifname));
    }
    if !MTU_RANGE.contains(&allocation.mtu) {
        return broken(format!("has mtu {}, which is not {MTU_RANGE:?}", allocation.mtu));
    }
    if spec.port == PortKind::VhostUser && allocation.socket_path.is_none() {
        return broken("has no socket_path for a vhost-user port".to_owned());
    }
    Ok(())
}

fn print(result: &CniResult, config: &NetworkConfig, output: &mut dyn Write) -> Result<(), CniError> {
    let json = result.to_json(config.version).map_err(|error| CniError::io("cannot write the result", error))?;
    writeln!(output, "{json}")
        .and_then(|()| output.flush())
        .map_err(|error| CniError::io("cannot write the result to stdout", error))
}
