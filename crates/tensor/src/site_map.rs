//! A table by site that a pass reads quickly: at every site of every adapter of a batch.

use crate::site::SiteId;

/// Values by site, in the order of sites: they lie where their site's number says, so that a pass, which asks site after
/// site, reads on in memory.
#[derive(Debug)]
pub(crate) struct SiteMap<T>(Vec<Option<T>>);

impl<T> Default for SiteMap<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> SiteMap<T> {
    /// Puts a value at a site; one that was there is replaced.
    pub(crate) fn insert(&mut self, site: SiteId, value: T) {
        if self.0.len() <= site.0 {
            self.0.resize_with(site.0 + 1, || None);
        }
        self.0[site.0] = Some(value);
    }

    #[inline]
    pub(crate) fn get(&self, site: SiteId) -> Option<&T> {
        self.0.get(site.0)?.as_ref()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.values().next().is_none()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (SiteId, &T)> {
        self.0.iter().enumerate().filter_map(|(number, value)| Some((SiteId(number), value.as_ref()?)))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (SiteId, &mut T)> {
        self.0.iter_mut().enumerate().filter_map(|(number, value)| Some((SiteId(number), value.as_mut()?)))
    }

    pub(crate) fn sites(&self) -> impl Iterator<Item = SiteId> {
        self.iter().map(|(site, _)| site)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flatten()
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut().flatten()
    }

    /// Takes in the values of another map, which replace those at the same sites.
    pub(crate) fn extend(&mut self, other: Self) {
        let others = other.0.into_iter().enumerate();
        others
            .filter_map(|(number, value)| Some((SiteId(number), value?)))
            .for_each(|(site, value)| self.insert(site, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_in_the_order_of_sites_and_holds_the_latest() {
        let mut map = SiteMap::default();
        assert!(map.is_empty() && map.get(SiteId(3)).is_none());
        for (site, value) in [(5, 'a'), (2, 'b'), (5, 'c')] {
            map.insert(SiteId(site), value);
        }
        let mut other = SiteMap::default();
        other.insert(SiteId(2), 'd');
        other.insert(SiteId(7), 'e');
        map.extend(other);
        let found: Vec<(usize, char)> = map.iter().map(|(site, value)| (site.0, *value)).collect();
        assert_eq!(found, [(2, 'd'), (5, 'c'), (7, 'e')]);
        assert_eq!(map.sites().map(|site| site.0).collect::<Vec<_>>(), [2, 5, 7]);
        assert!(map.get(SiteId(6)).is_none() && map.get(SiteId(100)).is_none());
    }
}
