//! Policies of replication that tests steer.

use std::fmt;

use graviton_engine::port::{
    Choice, PartialCopy, Placement, PolicyError, Rebalance, ReplicationPolicy, SectorState,
};

/// Puts blobs into the first sectors that are free; which replicas are to move is the function's to say.
pub struct Steered<F>(pub F);

impl<F> fmt::Debug for Steered<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Steered").finish_non_exhaustive()
    }
}

/// The sectors that can take a replica more.
pub fn free(request: &Placement<'_>) -> impl Iterator<Item = u16> {
    let free = request.sectors.iter().filter(|sector| {
        sector.state == SectorState::Active && !request.holders.contains(&sector.number)
    });
    free.map(|sector| sector.number)
}

impl<F> ReplicationPolicy for Steered<F>
where
    F: Fn(&Placement<'_>) -> Option<Rebalance> + Send + Sync,
{
    fn name(&self) -> &'static str {
        "steered"
    }

    fn select_targets(&self, request: &Placement<'_>) -> Result<Choice, PolicyError> {
        let wanted = usize::from(request.copies).saturating_sub(request.holders.len());
        Ok(Choice {
            chosen: free(request).take(wanted).collect(),
            verdicts: Vec::new(),
        })
    }

    fn select_repair_targets(
        &self,
        request: &Placement<'_>,
        _partial: &[PartialCopy],
    ) -> Result<Choice, PolicyError> {
        self.select_targets(request)
    }

    fn needs_rebalance(&self, request: &Placement<'_>) -> Result<Option<Rebalance>, PolicyError> {
        Ok((self.0)(request))
    }
}

/// Puts what there is one copy of into the sector that a function names, and what is new into the first that are
/// free.
pub struct CopiedTo<F>(pub F);

impl<F> fmt::Debug for CopiedTo<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CopiedTo").finish_non_exhaustive()
    }
}

impl<F> ReplicationPolicy for CopiedTo<F>
where
    F: Fn(&Placement<'_>) -> u16 + Send + Sync,
{
    fn name(&self) -> &'static str {
        "copied-to"
    }

    fn select_targets(&self, request: &Placement<'_>) -> Result<Choice, PolicyError> {
        Steered(|_: &Placement<'_>| None).select_targets(request)
    }

    fn select_repair_targets(
        &self,
        request: &Placement<'_>,
        _partial: &[PartialCopy],
    ) -> Result<Choice, PolicyError> {
        let wanted = request.holders.len() < usize::from(request.copies);
        let sector = (self.0)(request);
        let chosen = free(request).filter(|&number| wanted && number == sector);
        Ok(Choice {
            chosen: chosen.collect(),
            verdicts: Vec::new(),
        })
    }

    fn needs_rebalance(&self, _request: &Placement<'_>) -> Result<Option<Rebalance>, PolicyError> {
        Ok(None)
    }
}
