//! The maps of Services: the order of writes, and foreign changes.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use veer_bpf_common::tables::{BackendKey, Member};

use super::memory::Kernel;
use crate::{
    family::Family,
    index::{ChosenEndpoint, EndpointState, ServicePort},
    services::{Plan, ServiceRows},
    tables::{Entries, Error, Filled, Key, Rows, Tables, Tracked},
};

/// A map that only notes what is done to it.
struct Journal(Arc<Mutex<Vec<String>>>);

impl Journal {
    fn note<T: Filled>(&self, what: &str, key: T::Key) {
        let line = format!("{what} {} {}", T::NAME, key.text());
        self.0.lock().unwrap().push(line);
    }
}

impl<T: Filled> Rows<T> for Journal {
    fn read(&mut self, _: Option<&Entries<T>>) -> Result<Entries<T>, Error> {
        Ok(Entries::<T>::new())
    }

    fn get(&self, _: &T::Key) -> Result<Option<T::Value>, Error> {
        Ok(None)
    }

    fn write(&mut self, key: T::Key, _: T::Value) -> Result<(), Error> {
        self.note::<T>("write", key);
        Ok(())
    }

    fn remove(&mut self, key: T::Key) -> Result<(), Error> {
        self.note::<T>("remove", key);
        Ok(())
    }
}

/// A port with one frontend and one backend.
fn port(frontend: &str, backend: &str) -> ServicePort {
    let at: SocketAddr = frontend.parse().unwrap();
    ServicePort {
        service: "x/a".into(),
        name: String::new(),
        protocol: 6,
        family: Family::of(at.ip()),
        external: false,
        frontends: vec![(at.ip(), at.port())],
        endpoints: vec![ChosenEndpoint {
            address: backend.parse().unwrap(),
            state: EndpointState::Ready,
            chosen: true,
            node: None,
        }],
        affinity: 0,
        local: false,
    }
}

#[test]
fn what_a_frontend_leads_to_is_written_before_it_and_removed_after_it() {
    let done: Arc<Mutex<Vec<String>>> = Arc::default();
    let journal = || Box::new(Journal(Arc::clone(&done)));
    let mut tables: Tables = Kernel::new().tables();
    tables.services = Tracked::new(journal());
    tables.backends = Tracked::new(journal());
    tables.members = Tracked::new(journal());
    let mut plan = Plan::default();
    let mut lines = |ports: &[ServicePort]| {
        tables.apply_services(&plan.update("x/a", ports)).unwrap();
        std::mem::take(&mut *done.lock().unwrap())
    };
    let first = lines(&[port("10.96.0.10:80", "10.0.0.1:8080")]);
    let (slot, member) = ("0 of version 1 of Service 1", "10.0.0.1:8080 of Service 1");
    let frontend = "10.96.0.10:80 of protocol 6";
    assert_eq!(
        first,
        [
            format!("write BACKENDS {slot}"),
            format!("write MEMBERS {member}"),
            format!("write SERVICES {frontend}"),
        ]
    );
    let gone = lines(&[]);
    assert_eq!(
        gone,
        [
            format!("remove SERVICES {frontend}"),
            format!("remove MEMBERS {member}"),
            format!("remove BACKENDS {slot}"),
        ]
    );
    let v6 = lines(&[port("[fd00:96::10]:80", "[fd00::1]:8080")]);
    assert!(v6[1].ends_with("[fd00::1]:8080 of Service 2"), "{v6:?}");
}

#[test]
fn foreign_changes_in_the_maps_of_services_are_reverted_and_told() {
    let kernel = Kernel::new();
    let mut tables = kernel.tables();
    let mut plan = Plan::default();
    let step = plan.update("x/a", &[port("10.96.0.10:80", "10.0.0.1:8080")]);
    // What an earlier agent did not get to remove is nobody's fault.
    let stray = Member::new(9, [0; 16], [0; 2]);
    kernel.members.lock().unwrap().entries.insert(stray, 1);
    tables.apply_services(&step).unwrap();
    let mut round = || {
        let mut told: Vec<String> = Vec::new();
        tables
            .converge_services(&plan.rows(), |what| told.push(what))
            .unwrap();
        told
    };
    assert!(round().is_empty());
    let members = kernel.members.lock().unwrap().entries.clone();
    assert_eq!(members, plan.rows().members);
    let before = kernel.writes();
    assert!(round().is_empty());
    assert_eq!(kernel.writes(), before);

    kernel.services.lock().unwrap().entries.clear();
    for backend in kernel.backends.lock().unwrap().entries.values_mut() {
        backend.port = [1, 1];
    }
    kernel.members.lock().unwrap().entries.insert(stray, 1);
    let told = round();
    assert_eq!(told.len(), 3, "{told:?}");
    let ends = [
        "BACKENDS was changed",
        "MEMBERS was added",
        "SERVICES was removed",
    ];
    for end in ends {
        assert!(told.iter().any(|text| text.ends_with(end)), "{end}");
    }
    let rows = plan.rows();
    assert_rows(&kernel, &rows);
    let slot = BackendKey {
        service: 1,
        version: 1,
        slot: 0,
    };
    assert!(rows.backends.contains_key(&slot));
}

/// The maps of Services hold these rows.
fn assert_rows(kernel: &Kernel, rows: &ServiceRows) {
    assert_eq!(kernel.services.lock().unwrap().entries, rows.services);
    assert_eq!(kernel.backends.lock().unwrap().entries, rows.backends);
    assert_eq!(kernel.members.lock().unwrap().entries, rows.members);
}

#[test]
fn a_full_map_takes_rows_when_others_have_gone() {
    let kernel = Kernel::new();
    let mut tables = kernel.tables();
    kernel.backends.lock().unwrap().limit = Some(1);
    let mut plan = Plan::default();
    let none: [ServicePort; 0] = [];
    let a = [port("10.96.0.10:80", "10.0.0.1:8080")];
    let b = [port("10.96.0.11:80", "10.0.0.2:8080")];
    tables.apply_services(&plan.update("x/a", &a)).unwrap();
    let step = plan.update_all([("x/a", &none[..]), ("x/b", &b[..])]);
    tables.apply_services(&step).unwrap_err();
    assert_rows(&kernel, &ServiceRows::default());
    tables.converge_services(&plan.rows(), |_| {}).unwrap();
    assert_rows(&kernel, &plan.rows());
    // What a comparison finds is both written and removed.
    plan.update_all([("x/a", &a[..]), ("x/b", &none[..])]);
    tables.converge_services(&plan.rows(), |_| {}).unwrap();
    assert_rows(&kernel, &plan.rows());
}

#[test]
fn what_a_frontend_leads_to_stays_when_there_is_no_room_for_what_it_should_lead_to() {
    let none: [ServicePort; 0] = [];
    let before = [port("10.96.0.10:80", "10.0.0.1:8080")];
    let after = [port("10.96.0.10:80", "10.0.0.2:8080")];
    // Another version of its number, and another number.
    for (a, b) in [(&after[..], &none[..]), (&none[..], &after[..])] {
        let kernel = Kernel::new();
        let mut tables = kernel.tables();
        kernel.backends.lock().unwrap().limit = Some(1);
        let mut plan = Plan::default();
        tables.apply_services(&plan.update("x/a", &before)).unwrap();
        let present = plan.rows();
        let step = plan.update_all([("x/a", a), ("x/b", b)]);
        tables.apply_services(&step).unwrap_err();
        assert_rows(&kernel, &present);
        let full = tables.converge_services(&plan.rows(), |_| {});
        assert_eq!(full.unwrap_err().name, "BACKENDS");
        assert_rows(&kernel, &present);
        kernel.backends.lock().unwrap().limit = None;
        tables.converge_services(&plan.rows(), |_| {}).unwrap();
        assert_rows(&kernel, &plan.rows());
    }
}
