# The public surface: type checkers read it, and `imret/__init__.py` loads each name from its module when
# it is first asked for. One name a line: from MODULE import NAME as NAME
from finetune.config import FinetuneConfig as FinetuneConfig
from finetune.run import finetune as finetune
from imret.errors import ChangedMeanwhile as ChangedMeanwhile
from imret.errors import DataError as DataError
from imret.errors import ImageError as ImageError
from imret.errors import ImretError as ImretError
from imret.errors import ModelError as ModelError
from imret.errors import ModelMismatch as ModelMismatch
from imret.errors import ModelUnknown as ModelUnknown
from imret.errors import StoreDamaged as StoreDamaged
from imret.errors import StoreError as StoreError
from imret.errors import StoreLocked as StoreLocked
from imret.errors import StoreUnavailable as StoreUnavailable
from imret.evaluation.evaluate import evaluate as evaluate
from imret.evaluation.index_recall import evaluate_collection as evaluate_collection
from imret.evaluation.report import CollectionReport as CollectionReport
from imret.evaluation.report import EvaluationReport as EvaluationReport
from imret.models.encoder import Encoder as Encoder
from imret.models.lazy_encoder import LazyEncoder as LazyEncoder
from imret.retrieval.classify import Classification as Classification
from imret.retrieval.classify import Prediction as Prediction
from imret.retrieval.classify import classify as classify
from imret.retrieval.filter_syntax import make_filter as make_filter
from imret.retrieval.query import Term as Term
from imret.retrieval.results import Facet as Facet
from imret.retrieval.results import Hit as Hit
from imret.retrieval.search import facets as facets
from imret.retrieval.search import search as search
from imret.settings import __version__ as __version__
from imret.sources.stored import StoredSource as StoredSource
from imret.sources.stored import forget_source as forget_source
from imret.sources.stored import list_sources as list_sources
from imret.sources.stored import rename_source as rename_source
from imret.store import Collection as Collection
from imret.store import Filter as Filter
from imret.store import Ids as Ids
from imret.store import Match as Match
from imret.store import Range as Range
from imret.store import Store as Store
from imret.store import open_store as open_store
from imret.store.parquet import export_collection as export_collection
from imret.store.parquet import import_collection as import_collection
from ingest.pipeline import ingest as ingest
from ingest.sources import FolderSource as FolderSource

__all__: list[str]
