//! The mbarrier state machine: protocols as kernels use them, and every misuse.

use gradus_emu::tensor::mbarrier::{MAX_COUNT, Mbarrier};

#[test]
fn objects_survive_shared_memory() {
    let mut barrier = Mbarrier::init(MAX_COUNT).unwrap();
    barrier.arrive(12345).unwrap();
    barrier.expect_tx(MAX_COUNT).unwrap();
    assert_eq!(Mbarrier::unpack(barrier.pack()), Ok(barrier));
    let mut barrier = Mbarrier::init(1).unwrap();
    barrier.complete_tx(MAX_COUNT).unwrap();
    assert_eq!(barrier.outstanding_bytes(), -(MAX_COUNT as i32));
    assert_eq!(Mbarrier::unpack(barrier.pack()), Ok(barrier));
    assert!(Mbarrier::unpack(Mbarrier::INVALID).unwrap_err().contains("not initialized"));
    assert!(Mbarrier::unpack(0x1234).unwrap_err().contains("not initialized"));
}

#[test]
fn arrivals_complete_phases_and_parity_flips() {
    let mut barrier = Mbarrier::init(3).unwrap();
    assert_eq!(barrier.test_wait_parity(1), Ok(true), "the phase before the first is over");
    for phase in 0..9 {
        let parity = phase % 2;
        assert_eq!(barrier.test_wait_parity(parity), Ok(false));
        let token = barrier.arrive(1).unwrap();
        assert_eq!(Mbarrier::pending_count(token), Ok(3));
        let second = barrier.arrive(1).unwrap();
        assert_eq!(Mbarrier::pending_count(second), Ok(2));
        assert_eq!(barrier.test_wait(token), Ok(false));
        assert_eq!(barrier.pending(), 1);
        barrier.arrive(1).unwrap();
        assert_eq!(barrier.pending(), 3);
        assert_eq!(barrier.test_wait(token), Ok(true));
        assert_eq!(barrier.test_wait_parity(parity), Ok(true));
        assert_eq!(barrier.phase(), ((phase + 1) % 4) as u8);
    }
}

#[test]
fn a_copy_completes_the_phase_after_the_arrival_or_before() {
    for (early, late) in [(0, 4096), (4096, 0), (1024, 3072)] {
        let mut barrier = Mbarrier::init(1).unwrap();
        barrier.complete_tx(early).unwrap();
        assert_eq!(barrier.test_wait_parity(0), Ok(false), "the arrival is pending");
        let token = barrier.arrive_expect_tx(4096).unwrap();
        assert_eq!(barrier.test_wait(token), Ok(late == 0));
        if late > 0 {
            assert_eq!(barrier.outstanding_bytes(), late);
            barrier.complete_tx(late as u32 - 16).unwrap();
            assert_eq!(barrier.test_wait(token), Ok(false));
            barrier.complete_tx(16).unwrap();
        }
        assert_eq!(barrier.test_wait(token), Ok(true));
        assert_eq!(barrier.test_wait_parity(0), Ok(true));
        assert_eq!((barrier.pending(), barrier.outstanding_bytes()), (1, 0));
    }
}

#[test]
fn expect_tx_alone_holds_the_phase_open() {
    let mut barrier = Mbarrier::init(2).unwrap();
    barrier.expect_tx(64).unwrap();
    barrier.arrive(2).unwrap();
    assert_eq!(barrier.test_wait_parity(0), Ok(false));
    assert_eq!(barrier.pending(), 0);
    assert!(barrier.arrive(1).unwrap_err().contains("0 arrivals are pending in phase 0"));
    barrier.complete_tx(64).unwrap();
    assert_eq!(barrier.test_wait_parity(0), Ok(true));
}

#[test]
fn drop_shrinks_the_later_phases() {
    let mut barrier = Mbarrier::init(3).unwrap();
    barrier.arrive_drop(1).unwrap();
    barrier.arrive(2).unwrap();
    assert_eq!((barrier.phase(), barrier.pending()), (1, 2));
    barrier.arrive_drop_no_complete(1).unwrap();
    assert!(barrier.arrive_drop_no_complete(1).unwrap_err().contains("completes the phase"));
    barrier.arrive(1).unwrap();
    assert_eq!((barrier.phase(), barrier.pending()), (2, 1));
}

#[test]
fn no_complete_must_not_complete() {
    let mut barrier = Mbarrier::init(4).unwrap();
    barrier.arrive_no_complete(3).unwrap();
    let before = barrier;
    assert!(barrier.arrive_no_complete(1).unwrap_err().contains("noComplete"));
    assert_eq!(barrier, before);
    barrier.expect_tx(8).unwrap();
    barrier.arrive_no_complete(1).unwrap();
    assert_eq!(barrier.phase(), 0);
}

#[test]
fn misuse_is_an_error_and_changes_nothing() {
    assert!(Mbarrier::init(0).unwrap_err().contains("count of 0"));
    assert!(Mbarrier::init(MAX_COUNT + 1).unwrap_err().contains("1048576"));
    let fresh = Mbarrier::init(2).unwrap();
    let mut barrier = fresh;
    let error = barrier.arrive(3).unwrap_err();
    assert_eq!(error, "mbarrier.arrive of 3 where 2 arrivals are pending in phase 0");
    assert!(barrier.arrive(0).unwrap_err().contains("count of 0"));
    assert!(barrier.arrive_drop(3).unwrap_err().contains("arrive_drop of 3"));
    assert!(barrier.expect_tx(MAX_COUNT + 1).unwrap_err().contains("outstanding bytes"));
    assert!(barrier.complete_tx(MAX_COUNT + 1).unwrap_err().contains("-1048576"));
    assert!(barrier.arrive_expect_tx(u32::MAX).unwrap_err().contains("outstanding bytes"));
    assert!(barrier.test_wait_parity(2).unwrap_err().contains("parity 2"));
    assert!(barrier.test_wait(7).unwrap_err().contains("no token"));
    assert!(Mbarrier::pending_count(7).unwrap_err().contains("no token"));
    assert_eq!(barrier, fresh);
    let token = barrier.arrive(1).unwrap();
    barrier.arrive(1).unwrap();
    barrier.arrive(2).unwrap();
    assert!(barrier.test_wait(token).unwrap_err().contains("before the preceding"));
}
