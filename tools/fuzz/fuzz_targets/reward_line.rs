//! Answers of commands and services: a finite score, no opinion, or a reason.
#![no_main]

use gradus_rft::reward::RewardOutcome;
use gradus_rft::reward::command::{Reply, parse_reply};
use gradus_rft::reward::http::parse_answer;
use gradus_rft::reward::spec::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    match parse_reply(data, 7) {
        Ok(Reply::Outcome(RewardOutcome::Score(score))) => assert!(score.is_finite()),
        Ok(Reply::Outcome(RewardOutcome::Abstain) | Reply::Refused(_)) => {}
        Err(reason) => assert!(!reason.is_empty()),
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    for count in 0..4 {
        if let Ok(outcomes) = parse_answer(text, count) {
            assert_eq!(outcomes.len(), count);
            assert!(outcomes.iter().flatten().all(|outcome| match outcome {
                RewardOutcome::Score(score) => score.is_finite(),
                RewardOutcome::Abstain => true,
            }));
        }
    }
    // A name is taken or refused; nothing is started by it.
    let _ = parse(text);
});
