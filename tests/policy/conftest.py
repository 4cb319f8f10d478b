"""Tests never time: hypothesis' deadline and its check for slow generation judge the machine."""

from hypothesis import HealthCheck, settings

settings.register_profile("moerun", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("moerun")
