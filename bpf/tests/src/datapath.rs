//! The object loaded into the kernel, its maps by type, and test runs.

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunOptions,
    maps::{Array, HashMap, LpmTrie, Map, MapData, PerCpuArray, PerCpuValues, RingBuf, lpm_trie},
    programs::{ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode},
};
use nix::{
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};
use std::{collections::BTreeMap, net::IpAddr, time::Duration};
use veer_bpf_common::{
    address::{IP_KEY_TAG_BITS, IpKey},
    device::IfIndex,
    identity::Identity,
    node::NodeId,
    outcome::{DropReason, Program, outcome_name},
    tables::{
        Config, Configuration, Counter, Counters, Decision, Decisions, Endpoint, Endpoints, Event,
        Events, FlowBefore, FlowEntry, Flows, FlowsBefore, Heartbeat, Interface, Interfaces,
        Ipcache, IpcacheEntry, Listen, Listening, Nodes, Places, Record, Remote, Remotes, Samples,
        Table, Talked, Traffic, Tuple,
    },
};

/// How often the kernel is asked to take a program, as the agent does.
const LOAD_ATTEMPTS: u32 = 5;

fn was_interrupted(error: &ProgramError) -> bool {
    if let ProgramError::LoadError { io_error, .. } = error {
        return io_error.raw_os_error() == Some(nix::libc::EAGAIN);
    }
    false
}

/// `outcome` of a record that no program has written since [`Datapath::run`]
/// cleared it.
const NOT_WRITTEN: u32 = u32::MAX;

/// A place that names no key of a test: the last one of clients elsewhere.
const NO_PLACE: u32 = Places::CAPACITY as u32 - 1;

/// Fields of `struct __sk_buff` that `BPF_PROG_TEST_RUN` takes
/// (`include/uapi/linux/bpf.h`; `convert___skb_to_skb` in `net/bpf/test_run.c`).
#[derive(Clone, Copy, Debug, Default)]
pub struct Context {
    /// `skb->mark` before the program.
    pub mark: u32,
    /// `skb->gso_size`, with segments to go with it.
    pub gso_size: u32,
}

/// Bytes of `struct __sk_buff`, and offsets in it.
const SKB_CONTEXT: usize = 192;
const MARK_AT: usize = 8;
const GSO_SEGS_AT: usize = 164;
const GSO_SIZE_AT: usize = 176;

impl Context {
    fn bytes(self) -> [u8; SKB_CONTEXT] {
        let mut bytes = [0; SKB_CONTEXT];
        put(&mut bytes, MARK_AT, self.mark);
        put(&mut bytes, GSO_SIZE_AT, self.gso_size);
        if self.gso_size != 0 {
            put(&mut bytes, GSO_SEGS_AT, 2);
        }
        bytes
    }
}

/// What a program made of a packet.
#[derive(Clone, Debug)]
pub struct Ran {
    /// TC or XDP code.
    pub code: i32,
    /// The program's record of its decision.
    pub decision: Decision,
    /// The packet afterwards.
    pub packet: Vec<u8>,
    /// `skb->mark` afterwards.
    pub mark: u32,
}

/// Identities of sender and receiver, the program's number, and the outcome's name.
pub type TalkKey = (u32, u32, u16, &'static str);

/// One set of maps with programs.
pub struct Datapath {
    ebpf: Ebpf,
}

impl Datapath {
    /// Loads the object and, of its programs, these.
    pub fn load(programs: &[Program]) -> Result<Self> {
        Self::load_from(veer_bpf_object::OBJECT, programs)
    }

    /// The same of another object, with the same maps.
    pub fn load_from(object: &[u8], programs: &[Program]) -> Result<Self> {
        Self::load_by(&mut EbpfLoader::new(), object, programs)
    }

    /// The same as after an upgrade from layout 4: until `until`, nanoseconds of
    /// `CLOCK_MONOTONIC`, the programs look for flows in its map, too.
    pub fn load_upgrading(until: u64, programs: &[Program]) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        loader.override_global(FlowsBefore::UNTIL, &until, true);
        Self::load_by(&mut loader, veer_bpf_object::OBJECT, programs)
    }

    fn load_by(loader: &mut EbpfLoader<'_>, object: &[u8], programs: &[Program]) -> Result<Self> {
        let mut ebpf = loader.load(object).context(
            "load the BPF object; is this root, and was it built without VEER_BPF_SKIP?",
        )?;
        for program in programs {
            let name = program.name();
            let p = ebpf
                .program_mut(name)
                .with_context(|| format!("no program {name}"))?;
            let mut load = || {
                if *program == Program::UplinkXdp {
                    TryInto::<&mut Xdp>::try_into(&mut *p)?.load()
                } else {
                    TryInto::<&mut SchedClassifier>::try_into(&mut *p)?.load()
                }
            };
            let mut outcome = load();
            for _ in 1..LOAD_ATTEMPTS {
                // The verifier made way for something that waited for the thread.
                if !outcome.as_ref().is_err_and(was_interrupted) {
                    break;
                }
                outcome = load();
            }
            outcome.with_context(|| format!("the verifier on {name}"))?;
        }
        Ok(Self { ebpf })
    }

    /// The object, for what this type does not wrap.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    fn map<T: Table>(&mut self) -> Result<&mut Map> {
        let name = T::NAME;
        self.ebpf
            .map_mut(name)
            .with_context(|| format!("no map {name}"))
    }

    pub(crate) fn array<T: Table>(&mut self) -> Result<Array<&mut MapData, T::Value>> {
        Ok(Array::try_from(self.map::<T>()?)?)
    }

    pub(crate) fn hash<T: Table>(&mut self) -> Result<HashMap<&mut MapData, T::Key, T::Value>> {
        Ok(HashMap::try_from(self.map::<T>()?)?)
    }

    fn per_cpu<T: Table>(&mut self) -> Result<PerCpuArray<&mut MapData, T::Value>> {
        Ok(PerCpuArray::try_from(self.map::<T>()?)?)
    }

    /// Writes the node's configuration.
    pub fn set_config(&mut self, config: Config) -> Result<()> {
        Ok(self.array::<Configuration>()?.set(0, config, 0)?)
    }

    /// Says when the agent had its last round, in nanoseconds.
    pub fn set_heartbeat(&mut self, at: u64) -> Result<()> {
        Ok(self.array::<Heartbeat>()?.set(0, at, 0)?)
    }

    /// Adds a local pod.
    pub fn set_endpoint(&mut self, address: impl Into<IpAddr>, endpoint: Endpoint) -> Result<()> {
        let key = IpKey::from(address.into());
        Ok(self.hash::<Endpoints>()?.insert(key, endpoint, 0)?)
    }

    /// Says what may come from a pod's veth.
    pub fn set_interface(&mut self, ifindex: IfIndex, interface: Interface) -> Result<()> {
        Ok(self
            .hash::<Interfaces>()?
            .insert(ifindex.get(), interface, 0)?)
    }

    /// Adds a row of the ipcache.
    pub fn set_prefix(
        &mut self,
        (address, bits): (impl Into<IpAddr>, u32),
        identity: Identity,
        node: NodeId,
    ) -> Result<()> {
        let mut trie: LpmTrie<_, IpKey, IpcacheEntry> = LpmTrie::try_from(self.map::<Ipcache>()?)?;
        let key = lpm_trie::Key::new(IP_KEY_TAG_BITS + bits, IpKey::from(address.into()));
        Ok(trie.insert(&key, IpcacheEntry::new(identity, node), 0)?)
    }

    /// Says which node has an address.
    pub fn set_node(&mut self, address: impl Into<IpAddr>, id: NodeId) -> Result<()> {
        let key = IpKey::from(address.into());
        Ok(self.hash::<Nodes>()?.insert(key, id.get(), 0)?)
    }

    /// Writes another node's entry.
    pub fn set_remote(&mut self, id: NodeId, remote: Remote) -> Result<()> {
        Ok(self.array::<Remotes>()?.set(id.get(), remote, 0)?)
    }

    /// Writes the entry of a flow that opens with this tuple. It keeps the place that it
    /// has; a new one has none.
    pub fn set_flow(&mut self, tuple: Tuple, entry: FlowEntry) -> Result<()> {
        let (key, opener) = tuple.canonical();
        let (place, share, partner) = self.flow(&tuple)?.map_or((NO_PLACE, 0, 0), |known| {
            (known.place(), known.share(), known.partner())
        });
        let entry = FlowEntry {
            tag: key.hash(),
            state: entry.state | opener.as_opener(),
            ..entry
        };
        let entry = entry.placed(place, share, partner);
        Ok(self.hash::<Flows>()?.insert(key, entry, 0)?)
    }

    /// The entry of a flow that opens with this tuple, without the bit that says so.
    pub fn flow(&mut self, tuple: &Tuple) -> Result<Option<FlowEntry>> {
        let (key, opener) = tuple.canonical();
        match self.hash::<Flows>()?.get(&key, 0) {
            Ok(entry) if entry.opener() == opener => Ok(Some(FlowEntry {
                state: entry.state & !FlowEntry::OPENED_BY_SECOND,
                ..entry
            })),
            Ok(_) | Err(aya::maps::MapError::KeyNotFound) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Writes an entry as programs of layout 4 do.
    pub fn set_flow_before(&mut self, tuple: Tuple, entry: FlowBefore) -> Result<()> {
        let key = tuple.asked_by(0);
        Ok(self.hash::<FlowsBefore>()?.insert(key, entry, 0)?)
    }

    /// Whether there is such an entry.
    pub fn has_flow_before(&mut self, tuple: Tuple) -> Result<bool> {
        let key = tuple.asked_by(0);
        match self.hash::<FlowsBefore>()?.get(&key, 0) {
            Ok(_) => Ok(true),
            Err(aya::maps::MapError::KeyNotFound) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether the object has the flow table; else it is of an earlier layout.
    pub fn has_flow_table(&self) -> bool {
        self.ebpf.map(Flows::NAME).is_some()
    }

    /// How many flow entries there are.
    pub fn flow_count(&mut self) -> Result<usize> {
        let flows = self.hash::<Flows>()?;
        Ok(flows.keys().collect::<Result<Vec<_>, _>>()?.len())
    }

    /// Removes all flow entries.
    pub fn clear_flows(&mut self) -> Result<()> {
        let mut flows = self.hash::<Flows>()?;
        let keys = flows.keys().collect::<Result<Vec<_>, _>>()?;
        for key in keys {
            flows.remove(&key)?;
        }
        Ok(())
    }

    fn counters(&mut self, program: Program, outcome: u32) -> Result<PerCpuValues<Counter>> {
        let index = Counters::index(program, outcome);
        Ok(self.per_cpu::<Counters>()?.get(&index, 0)?)
    }

    /// How many packets a program ended, or observed, so.
    pub fn packets(&mut self, program: Program, outcome: u32) -> Result<u64> {
        let values = self.counters(program, outcome)?;
        Ok(values.iter().map(|c| c.packets).sum())
    }

    /// Their bytes together.
    pub fn bytes(&mut self, program: Program, outcome: u32) -> Result<u64> {
        let values = self.counters(program, outcome)?;
        Ok(values.iter().map(|c| c.bytes).sum())
    }

    /// What is kept of the packets that a program dropped for a reason.
    pub fn samples(&mut self, program: Program, reason: DropReason) -> Result<Vec<Event>> {
        let map = self.per_cpu::<Samples>()?;
        let mut found = Vec::new();
        for window in 0..u64::from(Samples::PER_REASON) {
            let values = map.get(&Samples::index(program, reason, window), 0)?;
            found.extend(values.iter().filter(|sample| sample.at != 0).copied());
        }
        Ok(found)
    }

    /// Who sent to whom: packets and bytes.
    pub fn talks(&mut self) -> Result<BTreeMap<TalkKey, (u64, u64)>> {
        let map = self.per_cpu::<Traffic>()?;
        let mut found: BTreeMap<TalkKey, (u64, u64)> = BTreeMap::new();
        for values in map.iter() {
            for Talked { talk, counter, .. } in values?.iter() {
                if counter.packets == 0 {
                    continue;
                }
                let outcome = outcome_name(talk.outcome.into()).unwrap_or("?");
                let key = (talk.source, talk.destination, talk.program, outcome);
                let (packets, bytes) = found.entry(key).or_default();
                *packets += counter.packets;
                *bytes += counter.bytes;
            }
        }
        Ok(found)
    }

    /// Says which decisions are wanted, and until when.
    pub fn listen(&mut self, listen: Listen) -> Result<()> {
        Ok(self.array::<Listening>()?.set(0, listen, 0)?)
    }

    /// Takes all records out of the ring.
    pub fn records(&mut self) -> Result<Vec<Record>> {
        let map = self.ebpf().map_mut(Events::NAME).context("no ring")?;
        let mut ring = RingBuf::try_from(map)?;
        let mut found = Vec::new();
        while let Some(item) = ring.next() {
            found.push(Record::from_bytes(&item).context("a record of another length")?);
        }
        Ok(found)
    }

    /// All outcomes of a program that were counted, for messages.
    pub fn counted(&mut self, program: Program) -> Result<Vec<(&'static str, u64)>> {
        let mut all = Vec::new();
        for outcome in 0..veer_bpf_common::outcome::OUTCOMES_PER_PROGRAM {
            let n = self.packets(program, outcome)?;
            if n != 0 {
                all.push((outcome_name(outcome).unwrap_or("?"), n));
            }
        }
        Ok(all)
    }

    /// Runs a tc program once.
    pub fn run(&mut self, program: Program, packet: &[u8], context: Context) -> Result<Ran> {
        self.clear_decision(program)?;
        let context_in = context.bytes();
        let mut context_out = [0; SKB_CONTEXT];
        let mut out = vec![0; packet.len() + 256];
        let p: &SchedClassifier = self.program(program)?.try_into()?;
        let result = p.test_run(TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ctx_in: Some(&context_in),
            ctx_out: Some(&mut context_out),
            ..TestRunOptions::default()
        })?;
        out.truncate(result.data_size_out as usize);
        let mark = context_out[MARK_AT..MARK_AT + 4].try_into()?;
        Ok(Ran {
            code: result.return_value.cast_signed(),
            decision: self.decision(program)?,
            packet: out,
            mark: u32::from_ne_bytes(mark),
        })
    }

    /// Runs the XDP program once.
    pub fn run_xdp(&mut self, packet: &[u8]) -> Result<Ran> {
        self.clear_decision(Program::UplinkXdp)?;
        let mut out = vec![0; packet.len() + 256];
        let p: &Xdp = self.program(Program::UplinkXdp)?.try_into()?;
        let result = p.test_run(TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ..TestRunOptions::default()
        })?;
        out.truncate(result.data_size_out as usize);
        Ok(Ran {
            code: result.return_value.cast_signed(),
            decision: self.decision(Program::UplinkXdp)?,
            packet: out,
            mark: 0,
        })
    }

    /// Time of one run, as the kernel measures it over `repeat` runs on the
    /// same packet: what one run changes, the next one gets. The calling thread stays on
    /// its CPU from then on.
    pub fn time(
        &mut self,
        program: Program,
        packet: &[u8],
        context: Context,
        repeat: u32,
    ) -> Result<(Duration, Decision)> {
        stay_on_this_cpu()?;
        self.clear_decision(program)?;
        let context = context.bytes();
        let p = self.program(program)?;
        let mut options = TestRunOptions {
            data_in: Some(packet),
            repeat,
            ..TestRunOptions::default()
        };
        let result = if program == Program::UplinkXdp {
            TryInto::<&Xdp>::try_into(p)?.test_run(options)
        } else {
            options.ctx_in = Some(&context);
            TryInto::<&SchedClassifier>::try_into(p)?.test_run(options)
        }?;
        Ok((result.duration, self.decision(program)?))
    }

    fn program(&self, program: Program) -> Result<&aya::programs::Program> {
        let name = program.name();
        self.ebpf
            .program(name)
            .with_context(|| format!("no program {name}"))
    }

    fn clear_decision(&mut self, program: Program) -> Result<()> {
        let blank = Decision {
            outcome: NOT_WRITTEN,
            ..Decision::default()
        };
        let cpus = aya::util::nr_cpus().map_err(|(_, e)| e)?;
        let values = PerCpuValues::try_from(vec![blank; cpus])?;
        Ok(self
            .per_cpu::<Decisions>()?
            .set(program as u32, values, 0)?)
    }

    fn decision(&mut self, program: Program) -> Result<Decision> {
        let values = self.per_cpu::<Decisions>()?.get(&(program as u32), 0)?;
        let mut written = values.iter().filter(|d| d.outcome != NOT_WRITTEN);
        match (written.next(), written.next()) {
            (Some(d), None) => Ok(*d),
            (None, _) => bail!("{} left no record", program.name()),
            (Some(_), Some(_)) => bail!("{} ran on two CPUs", program.name()),
        }
    }

    /// Attaches a tc program to a device of the calling thread's namespace.
    pub fn attach(&mut self, program: Program, device: &str, at: TcAttachType) -> Result<()> {
        let name = program.name();
        let p = self
            .ebpf
            .program_mut(name)
            .with_context(|| format!("no program {name}"))?;
        TryInto::<&mut SchedClassifier>::try_into(p)?
            .attach(device, at)
            .with_context(|| format!("attach {name} to {device}"))?;
        Ok(())
    }

    /// Attaches the XDP program in generic mode.
    pub fn attach_xdp(&mut self, device: &str) -> Result<()> {
        let name = Program::UplinkXdp.name();
        let p = self
            .ebpf
            .program_mut(name)
            .with_context(|| format!("no program {name}"))?;
        TryInto::<&mut Xdp>::try_into(p)?
            .attach(device, XdpMode::Skb)
            .with_context(|| format!("attach {name} to {device}"))?;
        Ok(())
    }
}

/// Keeps the calling thread on its CPU. Between two of many runs the kernel may move it
/// to another, where the program writes another record.
fn stay_on_this_cpu() -> Result<()> {
    let mut here = CpuSet::new();
    here.set(sched_getcpu()?)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &here)?)
}

fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
}
