"""Verification after the fact: anybody checks a run or a piece of evidence from the files alone, offline."""

from btrain.verify.run import audit_run, audit_text, evidence_text, verify_evidence_file

__all__ = ["audit_run", "audit_text", "evidence_text", "verify_evidence_file"]
