//! What a controller says that it can do is what it does, for both kinds of controllers.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use nvme_spec::feature::FeatureId;
use nvme_spec::identify::{
    IdentifyController, LOG_COMMAND_EFFECTS, LOG_EXTENDED_DATA, LOG_SCOPES, cns,
};
use nvme_spec::log::{CommandEffects, FeatureEffects, SupportedLogPages, page};
use nvme_spec::{Nqn, Status, register};
use nvme_target::Limits;
use nvme_target::testing::{CC_ENABLE, HostOptions, InProcess, TestHost, entry};
use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

/// A target and the admin queue of an I/O controller, or of a discovery controller.
fn controller(discovery: bool) -> (InProcess, usize) {
    let mut t = InProcess::new(Limits::default(), 12, 64, None);
    if !discovery {
        let (admin, _) = t.connect(HostOptions::default());
        return (t, admin);
    }
    let host_nqn = t.host_nqn.clone();
    let link = t.open(TestHost::new(HostOptions::default()));
    t.run(link, |host| host.connect(0, None, &Nqn::discovery(), &host_nqn, 30_000));
    t.run(link, |host| host.property_set(register::CC, CC_ENABLE));
    (t, link)
}

fn read_page<T: FromBytes>(t: &mut InProcess, link: usize, which: u8) -> T {
    let answer = t.run(link, |host| host.get_log_page(which, 0, size_of::<T>() as u32));
    assert_eq!(answer.status(), Status::SUCCESS, "page {which:#x}");
    T::read_from_bytes(&answer.data).unwrap()
}

/// Get Features of whatever feature, with room for an answer in data.
fn get_feature(host: &mut TestHost, id: u8) -> u16 {
    let mut sqe = entry(0x0a, 0);
    sqe.cdw10 = U32::new(u32::from(id));
    if id == FeatureId::HOST_IDENTIFIER {
        sqe.cdw11 = U32::new(1);
        sqe.sgl.length = U32::new(16);
    }
    host.submit(sqe, &[], Vec::new())
}

#[test]
fn log_pages_are_served_as_listed_and_no_others() {
    for discovery in [false, true] {
        let (mut t, link) = controller(discovery);
        let list: SupportedLogPages = read_page(&mut t, link, page::SUPPORTED);
        for which in 0..=u8::MAX {
            let listed = list.pages[usize::from(which)].get() == 1;
            let expected = if listed { Status::SUCCESS } else { Status::INVALID_LOG_PAGE };
            let answer = t.run(link, |host| host.get_log_page(which, 0, 512));
            assert_eq!(answer.status(), expected, "discovery {discovery}, page {which:#x}");
        }
        assert_eq!(list.pages[usize::from(page::DISCOVERY)].get(), u32::from(discovery));
    }
}

#[test]
fn log_page_attributes_are_those_served() {
    for discovery in [false, true] {
        let (mut t, link) = controller(discovery);
        let answer = t.run(link, |host| host.identify(cns::CONTROLLER, 0));
        let announced = IdentifyController::read_from_bytes(&answer.data).unwrap();
        let list: SupportedLogPages = read_page(&mut t, link, page::SUPPORTED);
        let effects: CommandEffects = read_page(&mut t, link, page::COMMAND_EFFECTS);
        let mut served = 0;
        if list.pages[usize::from(page::COMMAND_EFFECTS)].get() == 1 {
            served |= LOG_COMMAND_EFFECTS;
        }
        // The third dword of the list is that of page 02h, at offset 8.
        let part = t.run(link, |host| host.get_log_page(page::SUPPORTED, 8, 4)).data;
        if part == list.pages[2].get().to_le_bytes() {
            served |= LOG_EXTENDED_DATA;
        }
        // Page 13h (NVMe-MI), and the scope of a command that every controller has.
        if list.pages[0x13].get() == 1 && effects.admin[0x06].get() >> 20 != 0 {
            served |= LOG_SCOPES;
        }
        assert_eq!(announced.log_page_attributes, served, "discovery {discovery}");
        let io_commands = effects.io.iter().any(|effect| effect.get() != 0);
        assert_eq!(io_commands, !discovery);
    }
}

#[test]
fn features_are_known_as_listed_and_no_others() {
    for discovery in [false, true] {
        let (mut t, link) = controller(discovery);
        let list: FeatureEffects = read_page(&mut t, link, page::FEATURE_EFFECTS);
        for id in 0..=u8::MAX {
            let listed = list.features[usize::from(id)].get();
            let answer = t.run(link, |host| get_feature(host, id));
            let expected = if listed & 1 == 1 { Status::SUCCESS } else { Status::INVALID_FIELD };
            assert_eq!(answer.status(), expected, "discovery {discovery}, feature {id:#x}");
            assert_eq!(listed & 1 == 1, listed >> 20 != 0, "a feature has a scope");
        }
    }
}
